"""One training in many processes, as `torchrun --nproc-per-node N -m training train …` starts them; one alone is N = 1.

Every process holds all images and the same weights, and takes its share of each batch; gradients, loss and the running figures
of batch norms become their means before each step, so that all networks stay one. While training, a batch norm sees its share
alone. The work of validation is shared as well. Only the first process writes and speaks.
"""

import io
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from training.batches import Batches
from training.errors import TrainingError

LAST_WORD_SECONDS = 5  # torchrun ends all processes when one fails: so long the first has to say why
Shared = TypeVar("Shared", Tensor, Batches)


@dataclass(frozen=True)
class Processes:
    """The processes of one training, as one of them sees them."""

    rank: int = 0  # 0 is the first
    world: int = 1  # how many there are

    def share(self, whole: Shared) -> Shared:
        """This process's part of a batch or a data set."""
        return whole[self.rank :: self.world]

    def own(self, generator: torch.Generator) -> torch.Generator:
        """A generator of this process alone, so that no two draw the same changes of images; the first keeps the given one."""
        seed = generator.initial_seed() + (self.rank << 40)  # far from the seeds of other epochs
        return torch.Generator().manual_seed(seed) if self.rank else generator

    @torch.no_grad()
    def mean_gradients(self, network: nn.Module, loss: Tensor, amount: Tensor | float) -> Tensor:
        """Means over all processes of the gradients and buffers, in place, and of the loss, which is returned.

        Each process counts as its `amount`, what its own loss is the mean over.
        """
        if self.world == 1:
            return loss
        gradients = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
        values = [loss.detach(), *gradients, *(buffer for buffer in network.buffers() if buffer.is_floating_point())]
        sums = amount * torch.cat([value.flatten() for value in (*values, torch.ones(1))])
        _exchange(dist.all_reduce, sums)
        means = torch.split(sums[:-1] / sums[-1], [value.numel() for value in values])
        for value, mean in zip(values, means, strict=True):
            value.copy_(mean.view_as(value))
        return values[0]

    def gather(self, rows: Tensor, n: int) -> Tensor:
        """All `n` rows in order, from those of each process's share."""
        if self.world == 1:
            return rows
        whole = torch.zeros(n, *rows.shape[1:])
        whole[self.rank :: self.world] = rows
        _exchange(dist.all_reduce, whole)
        return whole

    def agree(self, value: Any) -> Any:
        """The first process's value, for which the others wait."""
        values = [value]
        if self.world > 1:
            _exchange(dist.broadcast_object_list, values)
        return values[0]


ALONE = Processes()


@contextmanager
def join_processes() -> Iterator[Processes]:
    """Meets the other processes that torchrun started, if it did: by gloo for what is on the CPU, by nccl on GPUs."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield ALONE
        return
    dist.init_process_group()
    try:
        yield Processes(dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()


def run_silently(command: Callable[[], int]) -> int:
    """Runs the command of a process that is not the first: it says why it failed only where the first does not."""
    code, said = 1, io.StringIO()
    with redirect_stdout(io.StringIO()), redirect_stderr(said):
        try:
            code = command()
        finally:
            if code not in (0, 130):
                signal.signal(signal.SIGTERM, signal.SIG_DFL)  # by which torchrun ends this one when the first has spoken
                time.sleep(LAST_WORD_SECONDS)
    if code not in (0, 130):
        print(*said.getvalue().splitlines()[-1:], file=sys.stderr)
    return code


def _exchange(collective: Callable[..., Any], values: Any) -> None:
    try:
        collective(values)
    except RuntimeError as error:  # gloo has no class of its own for a connection that is closed
        raise TrainingError("another process was lost: the same command goes on after the last whole epoch") from error
