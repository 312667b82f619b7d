"""One training in many processes, as `torchrun --nproc-per-node N -m training train …` starts them.

Every process holds all images and the same weights, and takes its share of each batch. Gradients, loss and the running figures
of batch norms become their means before each step, so that all networks stay one; only a batch norm sees its share alone.
"""

import atexit
import io
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from training.batches import Batches
from training.errors import TrainingError

Shared = TypeVar("Shared", Tensor, Batches)


@dataclass(frozen=True)
class Processes:
    """The processes of one training, seen by that of `rank`. The first, 0, alone writes and speaks."""

    rank: int = 0
    world: int = 1  # how many there are

    def share(self, whole: Shared) -> Shared:
        """This process's part of a batch or a data set."""
        return whole[self.rank :: self.world]

    def own(self, generator: torch.Generator) -> torch.Generator:
        """The given one for the first process, and for each other one of its own: no two vary their images alike."""
        seed = generator.initial_seed() + self.rank * 1_000_000_007  # torch looks at the last 32 bits alone
        return torch.Generator().manual_seed(seed) if self.rank else generator

    @torch.no_grad()
    def mean_gradients(self, network: nn.Module, loss: Tensor, amount: Tensor | float) -> None:
        """Replaces loss, gradients and float buffers by their means, where each process counts as its `amount`."""
        if self.world == 1:
            return
        values = [loss.detach(), *(parameter.grad for parameter in network.parameters() if parameter.grad is not None)]
        values += [buffer for buffer in network.buffers() if buffer.is_floating_point()]
        sums = amount * torch.cat([value.flatten() for value in (*values, torch.ones(1))])
        self._exchange(dist.all_reduce, sums)
        means = torch.split(sums[:-1] / sums[-1], [value.numel() for value in values])
        for value, mean in zip(values, means, strict=True):
            value.copy_(mean.view_as(value))

    def gather(self, rows: Tensor, n: int) -> Tensor:
        """All `n` rows in order, from those of each process's share."""
        whole = torch.zeros(n, *rows.shape[1:])
        whole[self.rank :: self.world] = rows
        self._exchange(dist.all_reduce, whole)
        return whole

    def agree(self, value: Any) -> Any:
        """The first process's value, for which the others wait."""
        return self._exchange(dist.broadcast_object_list, [value])[0]

    def _exchange(self, collective: Callable[..., Any], values: Any) -> Any:
        try:
            if self.world > 1:
                collective(values)
        except RuntimeError as error:  # gloo has no class of its own for a connection that is closed
            raise TrainingError("another process was lost: the same command goes on after the last whole epoch") from error
        return values


ALONE = Processes()


def join_processes() -> Processes:
    """Meets the other processes that torchrun started, if it did: by gloo for what is on the CPU, by nccl on GPUs."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        return ALONE
    dist.init_process_group()
    atexit.register(dist.destroy_process_group)
    return Processes(dist.get_rank(), dist.get_world_size())


def run_silently(command: Callable[[], int]) -> int:
    """Runs the command of a process that is not the first: it says why it failed only where the first does not."""
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()) as said:
        code = command()
    if code not in (0, 130):
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        time.sleep(5)  # in which torchrun ends this process when the first failed as well
        print(*said.getvalue().splitlines()[-1:], file=sys.stderr)
    return code
