"""Fine-tuning tasks: what is pretrained, what is frozen, what adapters compute, and that pretraining is worth it."""

import pickle

import pytest
import torch
from family_catalogue import words
from task_helpers import normal
from torch.func import functional_call, grad, vmap

from lightning_lopt.evaluation.baselines import FINE_TUNING_BASELINES, Baselines
from lightning_lopt.evaluation.measurement import Problem, run_rules
from lightning_lopt.evaluation.sweeps import WarmUpAdamRule
from lightning_lopt.rules import AdamRule, StepContext
from lightning_lopt.seeding import generator
from lightning_lopt.tasks import (
    CharTransformerTask,
    FineTuneImages,
    FineTuneStudents,
    FineTuneTask,
    FineTuneTexts,
    ImageAutoencoderTask,
    ImageCNNTask,
    ImageMLPTask,
    Pretraining,
    Quadratic,
    TabularTask,
    Text,
)
from lightning_lopt.tasks.finetune import head_alone, head_names, pretraining
from lightning_lopt.tasks.finetune.adapters import SCALE
from lightning_lopt.tasks.finetune.synthetic_images import draw_images, few_of_each, of_classes
from lightning_lopt.tasks.finetune.teachers import related_table, teacher_table

BODY = ["layers.0.weight", "layers.0.bias", "layers.1.weight", "layers.1.bias"]


@pytest.fixture(scope="module")
def students():
    """A student of a random network, and 40 rows of another network with the same hidden layers."""
    draws, widths = generator(0, "test"), (24, 12)
    teacher, old = teacher_table(draws, (16, *widths, 32), "tanh", 4000)
    new = related_table(teacher, draws, 2, "tanh", 540)
    body = TabularTask(*old.cut(500), widths, "squared", activation="tanh", batch_size=64)
    task = TabularTask(*new.cut(500), widths, "squared", activation="tanh", batch_size=16)
    return task, Pretraining(body, 800, 1e-2)


@pytest.fixture(scope="module")
def small(blobs):
    """A perceptron that was hardly pretrained."""
    task = ImageMLPTask(blobs, blobs, (8, 6), "gelu", batch_size=8)
    return task, Pretraining(ImageMLPTask(blobs, blobs, (8, 6), "gelu"), 5)


def test_pretraining_is_adamw_in_double_precision():
    """Equal to ``torch.optim.AdamW`` written out, with warm-up and linear decay."""
    task = Quadratic(torch.tensor([1.0, 3.0]), noise=0.0)
    x = task.init(generator(7, "pretraining", "init"))["x"].double().requires_grad_()
    optimizer, draws = torch.optim.AdamW([x], weight_decay=0.01), generator(7, "pretraining")
    for lr in (0.05, 0.1, *(0.1 * (20 - step) / 18 for step in range(2, 20))):
        optimizer.param_groups[0]["lr"] = lr
        optimizer.zero_grad()
        batch = {name: value.double() for name, value in task.batch(draws).items()}
        task.loss({"x": x}, batch).backward()
        optimizer.step()
    assert torch.equal(Pretraining(task, 20, 0.1, 7).params()["x"], x.detach().float())


def test_pretraining_is_carried_out_once_and_depends_on_all_that_matters(small, blobs, monkeypatch):
    counts = []
    train = Pretraining._train
    monkeypatch.setattr(pretraining, "_PRETRAINED", {})
    monkeypatch.setattr(Pretraining, "_train", lambda self: counts.append(self.key()) or train(self))
    task = small[0]
    tanh = ImageMLPTask(blobs, blobs, (8, 6), "tanh", batch_size=8)
    fewer = ImageMLPTask(blobs.take(torch.arange(119)), blobs, (8, 6), "gelu", batch_size=8)
    kinds = [Pretraining(task, 2), Pretraining(task, 3), Pretraining(task, 2, 1e-2), Pretraining(task, 2, seed=1)]
    kinds += [Pretraining(tanh, 2), Pretraining(fewer, 2)]
    for kind in (*kinds, *kinds):
        kind.params()
    assert len(counts) == len(set(counts)) == 6
    again = Pretraining(ImageMLPTask(blobs, blobs, (8, 6), "gelu", batch_size=8, name="other name"), 2)
    assert all(torch.equal(again.params()[name], value) for name, value in kinds[0].params().items())
    assert len(counts) == 6
    kinds[0].params()["layers.0.weight"].zero_()  # a copy
    assert kinds[0].params()["layers.0.weight"].any()


def test_the_body_is_pretrained_and_the_head_is_drawn(small):
    task = FineTuneTask(*small)
    first, second, plain = task.init(generator(0)), task.init(generator(1)), small[0].init(generator(0))
    left = small[1].params()
    assert list(task.body) == BODY
    assert task.head == ("layers.2.weight", "layers.2.bias") == head_names(small[0])
    for name in BODY:
        assert torch.equal(first[name], left[name])
        assert torch.equal(second[name], left[name])
    for name in task.head:
        assert torch.equal(first[name], plain[name])
        assert not torch.equal(first[name], second[name])


@pytest.mark.parametrize("options", [{}, {"frozen": BODY[:2]}, {"rank": 2}], ids=["all", "part", "adapters"])
def test_only_what_is_trained_moves(small, options):
    """After some steps the network has the frozen tensors that it had; the others have moved."""
    task = FineTuneTask(*small, **options)
    params = {name: value.requires_grad_() for name, value in task.init(generator(0)).items()}
    assert params.keys() == task.roles.keys()
    before = {name: value.detach().clone() for name, value in task.inner(params).items()}
    assert task.body_moved(params).item() == 0
    optimizer, draws = torch.optim.AdamW(params.values(), 0.05), generator(2)
    for _ in range(5):
        optimizer.zero_grad()
        task.loss(params, task.batch(draws)).backward()
        optimizer.step()
    after = task.inner(params)
    still = set(BODY[1::2]) if "rank" in options else set(options.get("frozen", ()))
    assert {name for name, value in after.items() if torch.equal(value, before[name])} == still
    weights = [name for name in BODY if name.endswith("weight")]
    moved, norm = (
        torch.stack([(x[name] - y).square().sum() for name in weights for y in (before[name] * keep,)]).sum()
        for x, keep in ((after, 1.0), (before, 0.0))
    )
    torch.testing.assert_close(task.metrics(params, task.full_batch("valid"))["body_moved"], (moved / norm).sqrt())


def test_adapters_are_those_of_the_paper(small):
    task = FineTuneTask(*small, rank=3)
    params, left = task.init(generator(0)), small[1].params()
    assert not params["layers.1.weight.lora_b"].any()
    assert all(torch.equal(task.inner(params)[name], left[name]) for name in BODY)
    params["layers.1.weight.lora_b"] = b = normal(6, 3)
    expected = left["layers.1.weight"] + SCALE * b @ params["layers.1.weight.lora_a"]
    torch.testing.assert_close(task.inner(params)["layers.1.weight"], expected)
    roles = {name: "matrix" for weight in BODY[::2] for name in (f"{weight}.lora_a", f"{weight}.lora_b")}
    assert task.roles == {"layers.2.weight": "head", "layers.2.bias": "vector"} | roles


def test_adapters_of_a_convolution(blobs):
    plain = ImageCNNTask(blobs, blobs, (4,), batch_size=4)
    task = FineTuneTask(plain, Pretraining(plain, 2), rank=2)
    params = task.init(generator(0))
    assert params["convs.0.weight.lora_a"].shape == (2, 9)
    assert task.inner(params)["convs.0.weight"].shape == (4, 1, 3, 3)


@pytest.mark.parametrize("options", [{}, {"frozen": BODY[:3]}, {"rank": 2}], ids=["all", "part", "adapters"])
def test_gradients_under_vmap_are_those_of_single_models(small, options):
    task = FineTuneTask(*small, **options)
    models, batch = [task.init(generator(seed)) for seed in range(3)], task.batch(generator(9), 3)
    stacked = {name: torch.stack([model[name] for model in models]) for name in models[0]}
    grads, losses, carried = vmap(task.gradient)(stacked, batch)
    moved = vmap(task.body_moved)(stacked)
    assert not carried
    assert moved.shape == (3,)
    for index, model in enumerate(models):
        one = {name: value[index] for name, value in batch.items()}
        torch.testing.assert_close(losses[index], task.loss(model, one))
        for name, value in grad(task.loss)(model, one).items():
            torch.testing.assert_close(grads[name][index], value)


@pytest.mark.parametrize("family", [FineTuneImages, FineTuneTexts, FineTuneStudents], ids=lambda family: family.name)
def test_same_seed_same_task(family, blobs):
    source = {"finetune_image": [blobs], "finetune_text": [words(2400)]}.get(family.name, [])
    options = {"finetune_text": {"lengths": (6,), "vocabularies": (20,), "characters": (1000, 1500)}}
    drawn = []
    for _ in range(2):
        pretraining._PRETRAINED.clear()
        task = family(*source, widths=(8,), steps=4, bodies=2, **options.get(family.name, {})).sample(generator(3))
        drawn.append((task.name, task.config, task.init(generator(0)), task.full_batch("train")))
    (name, config, params, batch), (other_name, other_config, others, other_batch) = drawn
    assert (name, config) == (other_name, other_config)
    assert all(torch.equal(value, others[key]) for key, value in params.items())
    assert all(torch.equal(value, other_batch[key]) for key, value in batch.items())


def test_another_process_need_not_pretrain(small, monkeypatch):
    copy = pickle.loads(pickle.dumps(FineTuneTask(*small)))
    monkeypatch.setattr(Pretraining, "params", lambda self: pytest.fail("pretrained again"))
    assert torch.equal(copy.init(generator(0))["layers.0.weight"], copy.start["layers.0.weight"])


def best(task, steps=40):
    """The lowest median validation loss of AdamW at three learning rates after a few steps."""
    rules = [AdamRule(lr, schedule="cosine") for lr in (1e-3, 3e-3, 1e-2)]
    return min(float(run.final_valid.median()) for run in run_rules(rules, task, horizon=steps, seeds=2))


@pytest.mark.parametrize("options", [{}, {"rank": 4}], ids=["all", "adapters"])
def test_a_pretrained_student_generalises_better_than_a_fresh_one(students, options):
    task, body = students
    assert best(FineTuneTask(task, body, **options)) < 0.9 * best(task)


@pytest.mark.slow
def test_a_pretrained_convolutional_network_generalises_better_than_a_fresh_one():
    images = draw_images(generator(0), 20, 3000, 10, parts=8, noise=0.3)
    old = of_classes(images, torch.arange(14)).split(0.1, generator(0))
    few = few_of_each(of_classes(images, torch.arange(14, 20)), 4, generator(0), 300)
    options = {"channels": (8, 16), "activation": "gelu", "readout": "flatten"}
    task = ImageCNNTask(*few, **options, batch_size=12)
    pretrained = FineTuneTask(task, Pretraining(ImageCNNTask(*old, **options), 250, 1e-2))
    assert best(pretrained) < 0.95 * best(task)


def test_an_encoder_becomes_a_classifier(blobs):
    encoder = ImageAutoencoderTask(blobs, blobs, (8, 6), 4)
    task = ImageMLPTask(blobs, blobs, (8, 6), batch_size=8)
    names = {name: name.replace("layers", "encoder") for name in BODY}
    tuned = FineTuneTask(task, Pretraining(encoder, 3), body=names)
    assert torch.equal(tuned.init(generator(0))["layers.1.weight"], tuned.pretraining.params()["encoder.1.weight"])


def test_the_head_alone(small):
    task = head_alone(FineTuneTask(*small))
    assert set(task.roles) == {"layers.2.weight", "layers.2.bias"}
    (run,) = run_rules([AdamRule(1e-2)], task, horizon=20, seeds=2)
    assert not run.metrics["body_moved"].any()
    with pytest.raises(ValueError, match=r"no tensor of .* has the role 'head'"):
        head_alone(Quadratic(torch.ones(2)))


def test_baselines_of_fine_tuning_are_chosen_in_validation(students):
    problem, known = Problem("students", FineTuneTask(*students), 60), Baselines(seeds=2, shipped=False)
    runs = {name: known(problem, name) for name in FINE_TUNING_BASELINES}
    assert float(runs["adamw_warmup"].final_valid.median()) == pytest.approx(
        min(known.find(problem, "adamw_warmup").sweep), rel=1e-5
    )
    assert not runs["adamw_head"].metrics["body_moved"].any()
    assert runs["adamw_warmup"].metrics["body_moved"][-1].all()
    assert runs["adamw_default"].learning_rate is None


def test_warm_up_and_linear_decay():
    rule, params = WarmUpAdamRule(0.1, weight_decay=0.0), {"x": torch.ones(1)}
    sizes, roles = [], {"x": "vector"}
    for step in range(20):
        context = StepContext(loss=torch.tensor(1.0), step=torch.tensor(float(step)), total_steps=torch.tensor(20.0))
        with torch.no_grad():
            updates, _ = functional_call(
                rule, {}, (params, {"x": torch.ones(1)}, rule.init_state(params, roles), context)
            )
        sizes.append(-float(updates["x"]) if isinstance(updates["x"], torch.Tensor) else 0.0)
    expected = [0.05, 0.1, *(0.1 * (20 - step) / 18 for step in range(2, 20))]
    assert sizes == pytest.approx(expected, rel=1e-3)


def test_a_text_in_another_alphabet():
    one, other = Text(torch.tensor([0, 1, 2, 0]), "abc", "one"), Text(torch.tensor([0, 1]), "cb", "other")
    assert one.in_alphabet(other.alphabet).tolist() == [1, 1, 0, 1]
    assert one.in_alphabet(one.alphabet).tolist() == one.tokens.tolist()


def test_few_of_each_class():
    images = draw_images(generator(0), 4, 60, 8)
    train, valid = few_of_each(images, 3, generator(1), 20)
    assert torch.bincount(train.targets).tolist() == [3, 3, 3, 3]
    assert len(valid) == 20
    rows = [{row.numpy().tobytes() for row in part.flat} for part in (train, valid)]
    assert not rows[0] & rows[1]
    some = of_classes(images, torch.tensor([3, 1]))
    assert (some.classes, len(some)) == (2, 30)
    assert torch.equal(some.inputs[some.targets == 0], images.inputs[images.targets == 3])


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"body": {"layers.0.weight": "layers.1.weight"}}, "body maps 'layers.0.weight' to 'layers.1.weight', but"),
        ({"body": {"layers.9.weight": "layers.1.weight"}}, "has no such tensor and"),
        ({"body": {}}, "shares no tensor with"),
        ({"frozen": ["layers.2.weight"]}, "frozen must be some of"),
        ({"frozen": BODY, "rank": 2}, "rank=2 freezes the whole body; leave frozen empty"),
        ({"rank": -1}, "rank must be an integer >= 0, got -1"),
    ],
)
def test_wrong_arguments(small, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        FineTuneTask(*small, **options)


@pytest.mark.parametrize(("options", "sentence"), [({"steps": -1}, "steps must be"), ({"lr": 0.0}, "lr must be")])
def test_wrong_pretraining(small, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        Pretraining(small[0], **options)


def test_wrong_sizes_and_data(blobs):
    with pytest.raises(ValueError, match="size must be at least 6 pixels"):
        draw_images(generator(0), size=5)
    with pytest.raises(ValueError, match="3 classes; give images of at least four classes"):
        FineTuneImages(of_classes(blobs, torch.arange(3)))
    with pytest.raises(ValueError, match="trained must be a sequence of some of"):
        FineTuneImages(blobs, trained=("nothing",))


def test_a_model_with_tied_logits_keeps_its_whole_body():
    tokens = words(2400).tokens.clamp(max=19)
    task = CharTransformerTask(tokens[:2000], tokens[2000:], 20, width=8, depth=1, length=6, tied=True)
    tuned = FineTuneTask(task, Pretraining(task, 2))
    assert tuned.head == ()
    assert set(tuned.body) == set(task.roles)
