"""Inner steps as a CUDA graph, which needs one launch instead of hundreds."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any
from weakref import WeakKeyDictionary, WeakValueDictionary

from lightning.pytorch.utilities import rank_zero_warn

from lightning_lopt.meta.batches import BatchDraws
from lightning_lopt.meta.engine.eager import Eager
from lightning_lopt.meta.engine.execution import Advanced, Execution
from lightning_lopt.meta.engine.recording import Recording, recordable
from lightning_lopt.meta.engine.step import SteppedRuns
from lightning_lopt.meta.runs import InnerRuns
from lightning_lopt.meta.theta import Theta
from lightning_lopt.recording import stream_number
from lightning_lopt.rules.base import UpdateRule
from lightning_lopt.tasks.accelerations import computation_of
from lightning_lopt.tasks.base import Split, Task


class Recorded(Execution):
    """Inner steps recorded once for each kind of task, then replayed; results equal the recorded execution bit for bit.

    With small inner runs, a GPU waits for Python: a step is hundreds of kernels of a few microseconds. A recorded step
    is one launch, which advances the runs and stores their losses. The mini-batches of many steps are drawn on the CPU
    and copied to the device at once.

    A recording belongs to one stream. Tasks with the same computation
    (:func:`~lightning_lopt.tasks.accelerations.computation_of`) use it one after the other; the recording is deleted
    with the last of these tasks.

    On other devices, for runs that are not small, and if gradients flow through the steps, ``execution`` computes the
    steps without a recording. The same happens, with a warning, if recording fails (for a step that copies from the CPU
    or waits for the device).

    Args:
        execution: the execution to record: :class:`~lightning_lopt.meta.engine.Eager` by default, or
            :class:`~lightning_lopt.meta.engine.Compiled`.

    Example:
        >>> from lightning_lopt import AdamRule
        >>> from lightning_lopt.meta import start_runs, unroll
        >>> from lightning_lopt.meta.theta import stacked_theta
        >>> from lightning_lopt.tasks import Quadratic
        >>> rule, bowl = AdamRule(0.1), Quadratic(torch.tensor([1.0, 4.0]))
        >>> runs = start_runs(rule, bowl, pairs=1, horizon=10, seed=0, copies=1)  # on the device of the rule
        >>> runs, losses = unroll(rule, stacked_theta([rule], 1), runs, 3, torch.Generator(), execution=Recorded())
        >>> losses.flatten()  # on the CPU, Eager computes the steps
        tensor([2.5000, 2.0250, 1.6016])
    """

    def __init__(self, execution: Execution | None = None) -> None:
        self.execution = execution or Eager()
        # Recordings by task, stream and shapes; None if recording failed.
        self.recordings: WeakKeyDictionary[Task, dict[Hashable, Recording | None]] = WeakKeyDictionary()
        self.shared: WeakValueDictionary[Hashable, Recording] = WeakValueDictionary()

    def step(self, *arguments: Any) -> SteppedRuns:
        """One step without a recording."""
        return self.execution.step(*arguments)

    def steps(
        self, rule: UpdateRule, theta: Theta, groups: Sequence[InnerRuns], draws: Sequence[BatchDraws], steps: int
    ) -> Advanced:
        recording = None
        if recordable(value for runs in groups for value in runs.params.values()):
            recording = self._recording(rule, theta, groups, draws[0].splits, steps)
        if recording is None:
            return self.execution.steps(rule, theta, groups, draws, steps)
        return recording.steps(theta, groups, draws, steps)

    def _recording(
        self, rule: UpdateRule, theta: Theta, groups: Sequence[InnerRuns], splits: Sequence[Split], steps: int
    ) -> Recording | None:
        """The recording for these steps on this stream: of their task, of a task with the same computation, or new."""
        first_runs = groups[0]
        key = stream_number(), len(groups), *[value.shape for value in first_runs.params.values()]
        task_recordings = self.recordings.setdefault(first_runs.task, {})
        if key in task_recordings and task_recordings[key] is None:
            return None
        computation = computation_of(first_runs.task)
        candidates = [task_recordings.get(key), None if computation is None else self.shared.get((computation, key))]
        recording = next(
            (candidate for candidate in candidates if candidate and candidate.fits(rule, theta, groups, splits)), None
        )
        try:
            recording = recording or Recording(rule, theta, groups, splits)
            recording.prepare(self.execution.step, first_runs.task, first_runs.step, steps)
        except Exception as error:  # an error of the step itself is raised again without a recording
            rank_zero_warn(f"inner steps of {first_runs.task.name}: not recorded: {type(error).__name__}: {error}")
            recording = None
        if recording is not None and computation is not None:
            self.shared[computation, key] = recording
        for runs in groups:
            self.recordings.setdefault(runs.task, {})[key] = recording
        return recording
