"""A small training loop on CPUs, until its input ends: prints the clock and its steps so far, ten times a second."""

import select
import sys
import time

_SAY_S = 0.1


def main() -> None:
    import torch

    torch.manual_seed(1)
    model = torch.nn.Sequential(torch.nn.Linear(512, 1024), torch.nn.ReLU(), torch.nn.Linear(1024, 512))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    batch, target = torch.randn(64, 512), torch.randn(64, 512)
    steps, next_s = 0, time.monotonic()
    while not select.select([sys.stdin], [], [], 0)[0]:
        optimizer.zero_grad()
        torch.nn.functional.mse_loss(model(batch), target).backward()
        optimizer.step()
        steps += 1
        if (now_s := time.monotonic()) >= next_s:
            print(f"{now_s} {steps}", flush=True)
            next_s = now_s + _SAY_S


if __name__ == "__main__":
    main()
