"""Fine-tune a causal language model on text: plain PyTorch, on one GPU, on several, or on a CPU.

    python train.py                                       one GPU, or the CPU
    python train.py --small                               a few short steps
    torchrun --standalone --nproc-per-node=8 train.py     every GPU of this machine

The model is a directory with transformers' files, the data one or more files with a text per line
(*.jsonl with "text", or with "prompt" and "completion") or one text (*.txt). A checkpoint is a
directory below $BT_CHECKPOINT_DIR; the newest one below $BT_LOAD_CHECKPOINT_DIR is gone on from.
"""

import argparse
import json
import os
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from transformers import AutoModelForCausalLM, AutoTokenizer

SEED = 20260101
# Written last: a checkpoint that has it is whole.
STATE = "training_state.json"


def main() -> None:
    options = parse()
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    gpu = torch.cuda.is_available()
    device = torch.device(f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if gpu else "cpu")
    if gpu:
        torch.cuda.set_device(device)
    if world > 1:
        dist.init_process_group("nccl" if gpu else "gloo")
    started = time.perf_counter()
    torch.manual_seed(SEED)

    before = newest_checkpoint(os.environ.get("BT_LOAD_CHECKPOINT_DIR"))
    model = AutoModelForCausalLM.from_pretrained(before or options.model, dtype=torch.float32).to(device)
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    blocks = in_blocks(tokenizer, options.data, options.sequence_length)
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.learning_rate, weight_decay=0.01)
    step = 0
    if before is not None:
        step = json.loads((before / STATE).read_text())["step"]
        optimizer.load_state_dict(torch.load(before / "optimizer.pt", map_location=device, weights_only=True))
    module = model
    if world > 1:
        module = torch.nn.parallel.DistributedDataParallel(model, [device] if gpu else None)
    if rank == 0:
        say(
            model=str(before or options.model),
            resumed_at=step,
            blocks=len(blocks),
            device=str(device),
            processes=world,
            ready_s=round(time.perf_counter() - started, 3),
        )

    model.train()
    last = step + options.steps
    while step < last:
        step += 1
        began = time.perf_counter()
        batch = batch_of(blocks, step * world + rank, options.batch_size).to(device)
        with torch.autocast("cuda", dtype=torch.bfloat16) if gpu else nullcontext():
            loss = module(input_ids=batch, labels=batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if rank == 0:
            say(step=step, loss=round(loss.item(), 4), seconds=round(time.perf_counter() - began, 4))
        if step % options.checkpoint_every == 0 or step == last:
            if rank == 0:
                save(model, tokenizer, optimizer, step)
            if world > 1:
                dist.barrier()
    if world > 1:
        dist.destroy_process_group()


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default=os.environ.get("MODEL"), help="a directory, or a name on the Hub")
    parser.add_argument(
        "--data", default=os.environ.get("DATA", "sample.jsonl"), help="a file, or a directory"
    )
    parser.add_argument(
        "--small", action="store_true", help="20 steps of 4 × 64 tokens, as a CPU can take them"
    )
    parser.add_argument("--steps", type=int)
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--sequence-length", type=int)
    parser.add_argument("--checkpoint-every", type=int)
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    options = parser.parse_args()
    usual = {"steps": 200, "batch_size": 8, "sequence_length": 512, "checkpoint_every": 50}
    small = {"steps": 20, "batch_size": 4, "sequence_length": 64, "checkpoint_every": 10}
    for name, value in (small if options.small else usual).items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    if not options.model:
        parser.error("no model: give --model, or set MODEL")
    return options


def texts(data: str) -> Iterator[str]:
    """Yield every text in data: a file, or a directory of files."""
    top = Path(data)
    files = sorted(top.rglob("*")) if top.is_dir() else [top]
    for file in files:
        if file.suffix == ".txt":
            yield file.read_text()
        elif file.suffix == ".jsonl":
            with file.open() as lines:
                for line in lines:
                    row = json.loads(line)
                    yield row["text"] if "text" in row else f"{row['prompt']}\n{row['completion']}"


def in_blocks(tokenizer: Any, data: str, length: int) -> torch.Tensor:
    """Return the data's tokens as rows of `length`, one text after another."""
    tokens: list[int] = []
    for text in texts(data):
        tokens += tokenizer(text)["input_ids"] + [tokenizer.eos_token_id]
    count = len(tokens) // length
    if count == 0:
        raise SystemExit(
            f"{data}: holds {len(tokens)} tokens, and one block needs {length}; is it the right place?"
        )
    return torch.tensor(tokens[: count * length]).view(count, length)


def batch_of(blocks: torch.Tensor, number: int, size: int) -> torch.Tensor:
    """Return batch `number`: the same one, whenever a run goes on from there."""
    dice = torch.Generator().manual_seed(SEED + number)
    return blocks[torch.randint(len(blocks), (size,), generator=dice)]


def newest_checkpoint(directory: str | None) -> Path | None:
    """Return the newest whole checkpoint below directory, such as rank-0/checkpoint-100; None without one."""
    found = Path(directory).rglob(STATE) if directory else ()
    return max(
        (path.parent for path in found),
        key=lambda path: json.loads((path / STATE).read_text())["step"],
        default=None,
    )


def save(model: Any, tokenizer: Any, optimizer: torch.optim.Optimizer, step: int) -> None:
    """Write a checkpoint that transformers loads as a model, and this script goes on from."""
    if "BT_CHECKPOINT_DIR" not in os.environ:
        return
    place = Path(os.environ["BT_CHECKPOINT_DIR"], f"checkpoint-{step}")
    # Hidden it is a draft, which is not uploaded: killed in here, the job leaves no half checkpoint behind.
    draft = place.with_name(f".{place.name}")
    model.save_pretrained(draft)
    tokenizer.save_pretrained(draft)
    torch.save(optimizer.state_dict(), draft / "optimizer.pt")
    (draft / STATE).write_text(json.dumps({"step": step}))
    draft.rename(place)
    say(checkpoint=place.name, step=step)


def say(**what: object) -> None:
    """Print one line of JSON."""
    print(json.dumps(what), flush=True)


if __name__ == "__main__":
    main()
