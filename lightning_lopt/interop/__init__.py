"""Training loops of other libraries: Lightning Fabric, Hugging Face Accelerate and ``transformers.Trainer``.

Their wrappers of an optimizer pass only a closure to ``step``, so
:meth:`LearnedOptimizer.set_loss <lightning_lopt.LearnedOptimizer.set_loss>` sets the loss before each step. In each of
these libraries:

* The loss is the value that was differentiated. If batches are accumulated, the loss is the sum of the losses that
  ``backward`` received; if the library divides these losses, it is the mean over the window.
* With several processes, the loss is the mean over the processes, as for gradients; otherwise parameters differ
  between ranks.
* ``total_steps`` counts steps of the optimizer, not batches.
* ``epochs`` is the number of passes over the training data; ``base`` reads it for fine-tuning.

Fabric, with four batches a step::

    model, optimizer = fabric.setup(model, LearnedOptimizer(model, total_steps=len(data) // 4))
    window = 0.0
    for index, (x, y) in enumerate(data, 1):
        with fabric.no_backward_sync(model, enabled=index % 4 != 0):
            loss = loss_function(model(x), y) / 4
            fabric.backward(loss)
        window += loss.detach()
        if index % 4 == 0:
            optimizer.set_loss(fabric.all_reduce(window, reduce_op="mean"))
            optimizer.step()
            optimizer.zero_grad()
            window = 0.0

With Accelerate the loop is the same, but the wrapper has no ``set_loss``, so keep the unwrapped optimizer::

    accelerator = Accelerator(gradient_accumulation_steps=4)
    learned = LearnedOptimizer(model, total_steps=len(data) // 4)
    model, optimizer, data = accelerator.prepare(model, learned, data)
    window = 0.0
    for x, y in data:
        with accelerator.accumulate(model):
            loss = loss_function(model(x), y)
            accelerator.backward(loss)  # this divides the loss by 4
            window += loss.detach() / 4
            if accelerator.sync_gradients:
                learned.set_loss(accelerator.reduce(window, reduction="mean"))
                window = 0.0
            optimizer.step()
            optimizer.zero_grad()

``transformers.Trainer`` does not pass the loss to the optimizer; :class:`~lightning_lopt.LearnedTrainerMixin` does.
"""

from lightning_lopt.interop.transformers_trainer import LearnedTrainerMixin

__all__ = ["LearnedTrainerMixin"]
