"""A model with the shape of Qwen3-0.6B and random weights: written, loaded, set to work.

python -m benchmarks.models write DIR [--small]
python -m benchmarks.models load DIR        loads, generates; prints {"load_s", "generate_s", "text"}
"""

import argparse
import json
import math
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

CORPUS = Path(__file__).with_name("corpus.txt")
SEED = 20260101
END = "<|endoftext|>"
TOKENS = 1024
PROMPT = "A good carrier asks"

# https://huggingface.co/Qwen/Qwen3-0.6B/blob/main/config.json
CONFIG: dict[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 1024,
    "initializer_range": 0.02,
    "intermediate_size": 3072,
    "max_position_embeddings": 40960,
    "max_window_layers": 28,
    "model_type": "qwen3",
    "num_attention_heads": 16,
    "num_hidden_layers": 28,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": None,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "use_sliding_window": False,
    "vocab_size": 151936,
}
# The same architecture in a few MB.
SMALL: dict[str, Any] = {
    "head_dim": 32,
    "hidden_size": 128,
    "intermediate_size": 384,
    "max_window_layers": 4,
    "num_attention_heads": 4,
    "num_hidden_layers": 4,
    "num_key_value_heads": 2,
    "vocab_size": 4096,
}
GENERATION = {"bos_token_id": 0, "eos_token_id": 0, "do_sample": False}
TOKENIZER = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "bos_token": END,
    "eos_token": END,
    "pad_token": END,
    "clean_up_tokenization_spaces": False,
    "model_max_length": 40960,
}
README = "# A model with random weights\n\nThe shape is Qwen3-0.6B's; it says nothing sensible.\n"


def write_model(directory: Path, small: bool) -> Path:
    """Write the model to directory, all or nothing, unless it is there already; return directory.

    1.19 GB in one model.safetensors, or 2.6 MB if small; the same bytes every time.
    """
    if directory.exists():
        return directory
    config = CONFIG | (SMALL if small else {})
    directory.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", dir=directory.parent))
    try:
        _write_weights(unfinished / "model.safetensors", config)
        _write_tokenizer(unfinished / "tokenizer.json")
        for name, content in (
            ("config.json", config),
            ("generation_config.json", GENERATION),
            ("tokenizer_config.json", TOKENIZER),
        ):
            (unfinished / name).write_text(json.dumps(content, indent=2) + "\n")
        (unfinished / "README.md").write_text(README)
        unfinished.chmod(0o755)
        _publish(unfinished, directory)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return directory


def load_model(directory: Path) -> dict[str, Any]:
    """Load the model in directory as a job would and generate with it; return times and text.

    load_s is `from_pretrained` alone, in seconds; importing transformers is not in it.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.models.qwen3 import modeling_qwen3  # noqa: F401  # else from_pretrained imports it

    started = time.perf_counter()
    model = AutoModelForCausalLM.from_pretrained(directory, dtype="auto", local_files_only=True)
    loaded = time.perf_counter()
    tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
    prompt = tokenizer(PROMPT, return_tensors="pt")
    text = tokenizer.decode(model.generate(**prompt, max_new_tokens=8)[0])
    return {"load_s": loaded - started, "generate_s": time.perf_counter() - loaded, "text": text}


def shapes(config: dict[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield every tensor's name and shape, as transformers names them; lm_head is tied."""
    hidden, inner, head = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    queries, keys = config["num_attention_heads"] * head, config["num_key_value_heads"] * head
    yield "model.embed_tokens.weight", (config["vocab_size"], hidden)
    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}"
        yield f"{at}.input_layernorm.weight", (hidden,)
        yield f"{at}.self_attn.q_proj.weight", (queries, hidden)
        yield f"{at}.self_attn.k_proj.weight", (keys, hidden)
        yield f"{at}.self_attn.v_proj.weight", (keys, hidden)
        yield f"{at}.self_attn.q_norm.weight", (head,)
        yield f"{at}.self_attn.k_norm.weight", (head,)
        yield f"{at}.self_attn.o_proj.weight", (hidden, queries)
        yield f"{at}.post_attention_layernorm.weight", (hidden,)
        yield f"{at}.mlp.gate_proj.weight", (inner, hidden)
        yield f"{at}.mlp.up_proj.weight", (inner, hidden)
        yield f"{at}.mlp.down_proj.weight", (hidden, inner)
    yield "model.norm.weight", (hidden,)


def _write_weights(file: Path, config: dict[str, Any]) -> None:
    import numpy as np
    import torch
    from safetensors.torch import save_file

    dice = np.random.Generator(np.random.PCG64(SEED))
    tensors = {}
    for name, shape in shapes(config):
        if len(shape) == 1:
            tensors[name] = torch.ones(shape, dtype=torch.bfloat16)
            continue
        # Random bits, ten times as fast as normals: sign and fraction stay, the exponent becomes
        # one of four, so that every value is finite and the deviation about 0.014.
        bits = dice.integers(0, 1 << 64, math.prod(shape) // 4, dtype=np.uint64).view(np.int16)
        bits &= np.int16(-0x8000 | 0x01FF)
        bits += np.int16(118 << 7)
        if shape[0] == config["vocab_size"]:
            # Rows without a token are sixteen times smaller, so that what is generated can be read.
            bits[TOKENS * shape[1] :] -= np.int16(4 << 7)
        tensors[name] = torch.from_numpy(bits).view(torch.bfloat16).view(shape)
    save_file(tensors, file, metadata={"format": "pt"})
    file.chmod(0o644)


def _write_tokenizer(file: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=TOKENS,
        special_tokens=[END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train([str(CORPUS)], trainer)
    tokenizer.save(str(file))


def _publish(unfinished: Path, directory: Path) -> None:
    try:
        os.rename(unfinished, directory)
    except OSError:
        # Another process was first; what it wrote is the same.
        if not directory.exists():
            raise


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.models", description=__doc__)
    parser.add_argument("action", choices=("write", "load"))
    parser.add_argument("directory", type=Path)
    parser.add_argument("--small", action="store_true", help="write a few MB instead of 1.19 GB")
    options = parser.parse_args()
    if options.action == "write":
        print(write_model(options.directory, options.small))
    else:
        # Ctrl-C in the middle of an import deserves no traceback.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        print(json.dumps(load_model(options.directory)))


if __name__ == "__main__":
    main()
