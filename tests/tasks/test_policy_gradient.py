"""The policy gradient: exact rewards against played ones, the direction of the mean step, and what a rule sees."""

import pytest
import torch
from task_helpers import check_draws
from torch.func import grad, vmap

from lightning_lopt.evaluation.metrics import FLOOR
from lightning_lopt.seeding import generator
from lightning_lopt.tasks import PolicyGradientTask
from lightning_lopt.tasks.policy_gradient import draw_actions_and_rewards, draw_visits

ROUNDS = 400


@pytest.fixture(scope="module")
def task():
    return PolicyGradientTask(*draw_visits(generator(0), 1000, 300, 6, 4), widths=(12,), init_scale=3.0, batch_size=64)


def test_expected_reward_is_the_mean_of_played_ones(task):
    params, whole = task.init(generator(1)), task.full_batch("train")
    policy = task.logits(params, whole["contexts"]).softmax(-1)
    chance = torch.rand(ROUNDS, 1000, 2, generator=generator(2))
    actions, rewards = vmap(draw_actions_and_rewards, in_dims=(None, None, 0))(policy, whole["clicks"], chance)
    expected = float(task.metrics(params, whole)["reward"])
    stderr = float(rewards.std()) / rewards.numel() ** 0.5
    assert abs(float(rewards.mean()) - expected) < 4 * stderr
    shares = torch.stack([(actions == action).float().mean(0) for action in range(4)], 1)
    assert (shares - policy).abs().max() < 5 * 0.5 / ROUNDS**0.5
    assert 100 * (float(whole["clicks"].amax(1).mean()) - expected) == pytest.approx(
        float(task.loss(params, whole)), rel=1e-4
    )


def test_choosing_at_random_has_the_loss_scale_and_choosing_well_none(task):
    params = {name: torch.zeros_like(value) for name, value in task.init(generator(0)).items()}
    assert float(task.loss(params, task.full_batch("train"))) == pytest.approx(task.loss_scale, rel=1e-5)
    best = task.full_batch("train")["clicks"].argmax(1)
    task_of_best = PolicyGradientTask(*draw_visits(generator(0), 1000, 300, 6, 4), widths=())
    task_of_best.logits = lambda params, contexts: 1e4 * torch.nn.functional.one_hot(best, 4).float()
    assert float(task_of_best.loss({}, task.full_batch("train"))) == pytest.approx(0.0, abs=1e-3)


def test_the_mean_step_follows_the_gradient_of_the_regret(task):
    params = task.init(generator(1))
    batch = task.batch(generator(3), 4000)
    grads, losses, carried = vmap(task.gradient, in_dims=(None, 0))(params, batch)
    exact = grad(task.loss)(params, task.full_batch("train"))
    mean = torch.cat([grads[name].mean(0).flatten() for name in exact])
    wanted = torch.cat([value.flatten() for value in exact.values()])
    assert float(torch.nn.functional.cosine_similarity(mean, wanted, 0)) > 0.98
    assert not carried
    assert abs(float(losses.mean())) < FLOOR * task.loss_scale  # curves of it say nothing


def test_one_context_one_step_by_hand(task):
    """The first of two visits is clicked and the second is not: advantages of 1 and -1."""
    params, batch = task.init(generator(1)), {name: value[:2] for name, value in task.batch(generator(4)).items()}
    batch["clicks"] = torch.tensor([[1.0] * 4, [0.0] * 4])
    log_policy = task.logits(params, batch["contexts"]).log_softmax(-1)
    actions, rewards = draw_actions_and_rewards(log_policy.exp(), batch["clicks"], batch["chance"])
    assert rewards.tolist() == [1.0, 0.0]
    wanted = -(log_policy[0, actions[0]] - log_policy[1, actions[1]]) / 2
    torch.testing.assert_close(task.surrogate(params, batch), wanted, rtol=5e-3, atol=1e-4)


def test_batches_have_chances_and_splits_have_none(task):
    assert task.batch(generator(0), 2)["chance"].shape == (2, 64, 2)
    assert task.full_batch("valid").keys() == {"contexts", "clicks"}
    check_draws(task, ("train", "valid"))


def test_no_offer_beyond_the_last_is_chosen():
    """Sums of probabilities may end below 1."""
    policy = torch.tensor([[0.25, 0.25, 0.4999999]])
    actions, _ = draw_actions_and_rewards(policy, torch.ones(1, 3), torch.tensor([[0.99999994, 0.5]]))
    assert actions.tolist() == [2]
