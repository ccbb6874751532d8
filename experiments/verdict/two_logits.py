"""Why beta-decay can choose the worst: two logits under Adam, the loss raised by the first, and the decay of both.

Prints the first candidate's probability after a search of 1,440 architecture steps: for a weight that grows from 5 to
50, as by default after warm-up, for the same weight on average all the time, and for none.
"""

import torch

EDGES, STEPS, SEEDS = 10, 1440, 3


def probability(slope: float, start: float, end: float, seed: int) -> float:
    """Returns the first candidate's probability in the end.

    Args:
        slope: Of the loss in the first logit at equal probabilities; the second's is its negative.
        start, end: Weight of the decay.
        seed: Of the noise of the slope, of deviation 0.02.
    """
    noise = torch.Generator().manual_seed(seed)
    logits = torch.zeros(2, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=0.03, betas=(0.5, 0.999), weight_decay=1e-3)
    for step in range(STEPS):
        shares = torch.softmax(logits.detach(), 0)
        loss = slope * 4 * shares[0] * shares[1] + 0.02 * torch.randn((), generator=noise)
        weight = start + (end - start) * step / STEPS
        logits.grad = weight / EDGES * shares + torch.stack([loss, -loss])
        optimizer.step()
    return float(torch.softmax(logits.detach(), 0)[0])


if __name__ == "__main__":
    for slope in (0.002, 0.01, 0.05):
        for name, ends in (("growing", (5.0, 50.0)), ("constant", (27.5, 27.5)), ("none", (0.0, 0.0))):
            print(f"slope {slope}, {name}:", *(f"{probability(slope, *ends, seed):.3f}" for seed in range(SEEDS)))
