"""How far a data loader has come, and one that goes on from there: without reading again what was read before."""

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from torch.utils.data import DataLoader, Sampler, get_worker_info

from .random_states import get_random_states, set_random_states

STATES = 'mmvisattn_worker_states'  # key of a batch


class StateNotingCollate:
    """Collate samples, and note beside them the random states that the worker has then.

    Args:
        collate (Callable): The data loader's own function.
    """

    def __init__(self, collate: Callable[[list], Any]) -> None:
        self.collate = collate

    def __call__(self, samples: list) -> Any:
        """The batch, with the worker's number and states where it is a dict."""
        batch = self.collate(samples)
        worker = get_worker_info()
        if worker is not None and isinstance(batch, dict):
            batch[STATES] = (worker.id, get_random_states())
        return batch


class WorkerContinuation:
    """Start workers with the random states that those of an earlier run had.

    Args:
        init (Callable[[int], None]): What seeds a worker, by its number.
        states (dict[int, dict]): States of the earlier workers, by number.
        first (int): The earlier worker whose turn it is; a new data loader always begins with number 0.
        num_workers (int): Number of workers.
    """

    def __init__(self, init: Callable[[int], None], states: dict[int, dict], first: int, num_workers: int) -> None:
        self.init = init
        self.states = states
        self.first = first
        self.num_workers = num_workers

    def __call__(self, worker_id: int) -> None:
        """Seed a worker as new, then as the earlier one was left."""
        earlier = (worker_id + self.first) % self.num_workers
        self.init(earlier)
        if earlier in self.states:
            set_random_states(self.states[earlier])


class AdvancedBatches(Sampler):
    """A batch sampler whose first pass goes on from a place; later ones begin at the beginning.

    Args:
        batches (Sampler): The batch sampler.
        rest (Iterator): What is left of the first pass.
        at_first (Callable[[], None], optional): Called before the first batch is drawn, and after what begins
            a pass.
    """

    def __init__(self, batches: Any, rest: Iterator[list[int]], at_first: Callable[[], None] | None) -> None:
        self.batches = batches
        self.rest: Iterator[list[int]] | None = rest
        self.at_first = at_first

    @property
    def sampler(self) -> Any:
        """The sampler below, whose epoch mmengine sets."""
        return self.batches.sampler

    @property
    def batch_size(self) -> int:
        """Samples of a batch."""
        return self.batches.batch_size

    def __len__(self) -> int:
        """Batches of a whole pass."""
        return len(self.batches)

    def __iter__(self) -> Iterator[list[int]]:
        """The batches; a data loader may ask twice before it draws the first."""
        if self.rest is None:
            yield from self.batches
            return
        rest, self.rest = self.rest, None
        if self.at_first is not None:
            self.at_first()
        yield from rest


def advance(batches: Any, steps: int) -> tuple[Iterator[list[int]], int, bool]:
    """Draw batches of indices and drop them, from one pass to the next as mmengine's endless iterator does.

    Args:
        batches (Sampler): The batch sampler, new.
        steps (int): Number of batches to drop.

    Returns:
        tuple: What is left of the pass, the number of passes before it, and whether nothing is left.
    """
    rest, passes = iter(batches), 0
    for _ in range(steps):
        try:
            next(rest)
        except StopIteration:
            passes += 1
            if hasattr(batches.sampler, 'set_epoch'):
                batches.sampler.set_epoch(passes)
            rest = iter(batches)
            next(rest)
    following: Iterable[list[int]] = list(itertools.islice(rest, 1))
    return itertools.chain(following, rest), passes, not following


class Skipped:
    """An iterator for a loop that first drops what it has done: gives it nothing that often, and then goes on.

    Args:
        iterator (Iterator): The iterator, which stands where the loop is to go on.
        steps (int): How often the loop will ask for what it drops.
    """

    def __init__(self, iterator: Iterator, steps: int) -> None:
        self.iterator = iterator
        self.steps = steps

    def skip_iter(self, num_iters: int) -> None:
        """Drop steps at once; newer loops ask for that, and older ones for one batch after another."""
        self.steps -= num_iters

    def __next__(self) -> Any:
        """Nothing, or the next batch."""
        if self.steps:
            self.steps -= 1
            return None
        return next(self.iterator)


def rebuild(loader: DataLoader, batches: Any, **changes: Any) -> DataLoader:
    """The same data loader, not begun, over other batches.

    Args:
        loader (DataLoader): The data loader.
        batches (Sampler): Its new batch sampler.
        **changes (Any): Other arguments that are to change.
    """
    kept = (
        *('num_workers', 'collate_fn', 'pin_memory', 'timeout', 'worker_init_fn', 'multiprocessing_context'),
        *('generator', 'prefetch_factor', 'persistent_workers'),
    )
    arguments = {name: getattr(loader, name) for name in kept} | changes
    return DataLoader(loader.dataset, batch_sampler=batches, **arguments)


def reseed(init: Any, seed: int) -> Any:
    """What seeds a worker, for another seed, where it is mmengine's; else as it is."""
    if isinstance(init, functools.partial) and 'seed' in init.keywords:
        return functools.partial(init.func, *init.args, **{**init.keywords, 'seed': seed})
    return init or (lambda worker_id: None)
