"""The tutorial loop on several ranks: DistributedDataParallel over gloo, DistributedSampler.

torchrun --nproc_per_node=2 benchmarks/peers/pytorch_ddp.py (or python, which calls torchrun).
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

# A script's own folder comes first on sys.path; its neighbours must not shadow other packages.
if Path(sys.path[0]).resolve() == Path(__file__).resolve().parent:
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from benchmarks.peers.common import (
    BATCH,
    LEARNING_RATE,
    Report,
    load_mnist,
    parse,
    start_under_torchrun,
)


def main() -> None:
    arguments = parse("DistributedDataParallel over gloo, DistributedSampler.", ranks=2)
    start_under_torchrun(arguments)

    import torch
    import torch.distributed as dist
    from torch import nn
    from torch.nn.parallel import DistributedDataParallel
    from torch.utils.data import DataLoader, DistributedSampler

    from benchmarks.peers.torch_common import dataset, network, prepare, test_accuracy

    dist.init_process_group("gloo" if arguments.device == "cpu" else "nccl")
    rank, world_size = dist.get_rank(), dist.get_world_size()
    device = prepare(arguments)
    if device.type == "cuda":
        device = torch.device("cuda", rank)
    train, test = load_mnist(arguments.limit)
    samples = dataset(train)
    sampler = DistributedSampler(samples, shuffle=True, seed=arguments.seed)
    loader = DataLoader(samples, batch_size=BATCH // world_size, sampler=sampler)
    raw = network().to(device)
    model = DistributedDataParallel(raw)
    loss_function = nn.CrossEntropyLoss()
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    torch.manual_seed(arguments.seed + rank)  # dropout differs by rank
    report = Report("pytorch-ddp", arguments)
    for epoch in report.epochs():
        sampler.set_epoch(epoch)
        model.train()
        loss_sum, correct, seen = 0.0, 0, 0
        for inputs, labels in loader:
            inputs, labels = inputs.to(device), labels.to(device)
            logits = model(inputs)
            loss = loss_function(logits, labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

            loss_sum += loss.item() * len(labels)
            correct += (logits.argmax(1) == labels).sum().item()
            seen += len(labels)
            if report.stepped():
                break
        totals = torch.tensor([loss_sum, correct, seen], dtype=torch.float64, device=device)
        dist.all_reduce(totals)
        loss_sum, correct, seen = totals.tolist()
        report.end_epoch(loss_sum / seen, correct / seen, int(seen))
    if rank == 0:
        report.finish(test_accuracy(raw, test, device))
    dist.barrier()
    dist.destroy_process_group()
    os._exit(0)  # threads of gloo now and then abort an interpreter that is torn down


if __name__ == "__main__":
    main()
