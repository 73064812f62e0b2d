import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from clp_lightning.training import losses


def test_leave_one_out_golden():
    # group (1, 2, 6): 1 - (2+6)/2 = -3;  2 - (1+6)/2 = -1.5;  6 - (1+2)/2 = 4.5;  group (0, 0, 3): -1.5, -1.5, 3
    advantages = losses.leave_one_out_advantages(torch.tensor([1.0, 2, 6, 0, 0, 3]), 3)
    assert advantages.tolist() == [-3, -1.5, 4.5, -1.5, -1.5, 3]


def test_leave_one_out_with_weights_golden(monkeypatch):
    monkeypatch.setattr(losses, "LEAST", 0.0)
    # returns 1, 2, 6 with weights 1, 2, 0.5: 1 - (2 * 2 + 0.5 * 6) / 2.5 = -1.8; 2 - (1 + 3) / 1.5; 6 - (1 + 4) / 3
    advantages = losses.leave_one_out_advantages(torch.tensor([1.0, 2, 6]), 3, torch.tensor([1.0, 2, 0.5]))
    assert advantages.tolist() == pytest.approx([-1.8, -2 / 3, 13 / 3])


def test_leave_one_out_with_weights_that_vanish_is_the_plain_one():
    returns = torch.tensor([1.0, 2, 6, 0, 0, 3])
    weighted = losses.leave_one_out_advantages(returns, 3, torch.zeros(6))
    torch.testing.assert_close(weighted, losses.leave_one_out_advantages(returns, 3))


@given(st.lists(st.floats(-100, 100), min_size=4, max_size=4), st.floats(-10, 10))
def test_leave_one_out_ignores_a_constant_and_sums_to_zero(returns, constant):
    values = torch.tensor(returns, dtype=torch.float64)
    advantages = losses.leave_one_out_advantages(values, 2)
    torch.testing.assert_close(advantages, losses.leave_one_out_advantages(values + constant, 2))
    torch.testing.assert_close(advantages.view(-1, 2).sum(-1), torch.zeros(2, dtype=torch.float64))


def test_sequence_kl_counts_masked_tokens_only():
    log_probs, reference = torch.tensor([[-1.0, -2.0, -9.0]]), torch.tensor([[-1.5, -1.0, 0.0]])
    mask = torch.tensor([[True, True, False]])
    assert losses.sequence_kl(log_probs, reference, mask).tolist() == [-0.5]  # 0.5 + (-1)


def test_regularized_return_golden():
    # (1 - 0.25) * 4 - 0.25 * 2 = 2.5
    assert losses.regularized_return(torch.tensor([4.0]), torch.tensor([2.0]), 0.25).tolist() == [2.5]


def test_kl_penalty_golden_and_gradient():
    # rows of log-ratios (1, 3 masked) and (2, -1): k2 = 0.5 and 2 + 0.5; weighted (0.1 * 0.5 + 0.2 * 2.5) / 2 = 0.275
    log_probs = torch.tensor([[1.0, 3.0], [2.0, -1.0]], requires_grad=True)
    mask, alpha = torch.tensor([[True, False], [True, True]]), torch.tensor([0.1, 0.2])
    value = losses.kl_penalty(log_probs, torch.zeros(2, 2), mask, alpha)
    assert value.item() == pytest.approx(0.275)
    value.backward()  # alpha_b * log-ratio / B
    torch.testing.assert_close(log_probs.grad, torch.tensor([[0.05, 0.0], [0.2, -0.1]]))


def test_policy_gradient_loss_has_the_policy_gradient():
    # loss = -mean_b(A_b sum_t m_bt lp_bt), so d loss / d lp_bt = -A_b m_bt / B
    log_probs = torch.zeros(2, 2, requires_grad=True)
    mask = torch.tensor([[True, True], [True, False]])
    losses.policy_gradient_loss(log_probs, torch.tensor([2.0, -1.0]), mask).backward()
    assert log_probs.grad.tolist() == [[-1, -1], [0.5, 0]]


def test_leave_one_out_of_two_policies_golden(monkeypatch):
    monkeypatch.setattr(losses, "LEAST", 0.0)
    # returns 1, 2 of one policy and 6, 3 of the other, weights 1, 3, 1, 1; without each one's first response the mean is
    # (3 * 2 + 1 * 3) / 4 = 2.25, without the second (1 + 6) / 2 = 3.5
    values = torch.tensor([1.0, 2, 6, 3]), 4, torch.tensor([1.0, 3, 1, 1])
    assert losses.leave_one_out_advantages(*values, 2).tolist() == [-1.25, -1.5, 3.75, -0.5]


def test_balanced_ratios_golden():
    # two policies, two responses: probabilities 3/8 and 1/8 of the first, 1/2 and 1/2 of the second (its other token is masked):
    # (3/8) / (1/4) = 1.5 and (1/8) / (1/4) = 0.5; equal ones weigh 1
    log_probs = torch.tensor([[0.75, 0.5], [0.5, 0.1], [0.25, 0.5], [0.5, 0.9]]).log()
    mask = torch.tensor([[True, True], [True, False]]).repeat(2, 1)
    assert losses.balanced_ratios(log_probs, mask, 2).tolist() == pytest.approx([1.5, 1, 0.5, 1])
    assert losses.balanced_ratios(log_probs, mask, 1).tolist() == pytest.approx([1, 1, 1, 1])


@pytest.mark.parametrize("baseline", [False, True])
def test_responses_of_several_policies_give_the_exact_gradient_of_each_ones_objective(baseline):
    # three policies over two answers, two responses of each: all 2^6 draws, as often as they occur. The mean of
    # ratio * advantage * grad log pi is grad J(pi) for each, although the policies are far from each other
    generator = torch.Generator().manual_seed(0)
    thetas = 2 * torch.randn(3, 2, generator=generator, dtype=torch.float64)
    thetas.requires_grad_()
    ref, reward = torch.randn(2, 2, generator=generator, dtype=torch.float64)
    ref, log_pi = ref.log_softmax(0), thetas.log_softmax(1)
    exact = (log_pi.exp() * ((1 - 0.2) * reward - 0.2 * (log_pi - ref))).sum()
    (expected,) = torch.autograd.grad(exact, thetas, retain_graph=True)
    total = torch.zeros_like(expected)
    for answers in itertools.product((0, 1), repeat=6):
        y = torch.tensor(answers)
        log_probs, mask = log_pi[:, y].reshape(18, 1), torch.ones(18, 1, dtype=torch.bool)
        kl = losses.sequence_kl(log_probs.detach(), ref[y].repeat(3)[:, None], mask)
        returns = losses.regularized_return(reward[y].repeat(3), kl, 0.2)
        ratios = losses.balanced_ratios(log_probs, mask, 3)
        advantages = losses.leave_one_out_advantages(returns, 6, ratios, 3) if baseline else returns - 0.7
        loss = losses.policy_gradient_loss(log_probs, 3 * ratios * advantages, mask)  # a mean over three policies' rows
        (gradient,) = torch.autograd.grad(loss, thetas, retain_graph=True)
        total += log_pi.detach()[[0, 0, 1, 1, 2, 2], y].sum().exp() * -gradient
    torch.testing.assert_close(total, expected)


def test_token_kl_golden():
    # policy (3/4, 1/4) against (1/2, 1/2): 3/4 ln 3/2 + 1/4 ln 1/2 = 0.130812; the second position is padding
    logits, reference = torch.tensor([[3.0, 1.0], [1.0, 1.0]]).log(), torch.zeros(2, 2)
    mask = torch.tensor([[True, False], [True, False]])
    torch.testing.assert_close(losses.token_kl(logits, reference, mask), torch.tensor([[0.130812, 0], [0, 0]]))


def test_exact_token_kl_in_return_and_loss_is_the_gradient_of_the_responses_kl():
    # all responses of two tokens among three, as often as the policy gives them: the state after the first token is the token
    generator = torch.Generator().manual_seed(0)
    first = torch.randn(1, 3, generator=generator, dtype=torch.float64).requires_grad_()
    second = torch.randn(3, 3, generator=generator, dtype=torch.float64).requires_grad_()
    ref_first, ref_second = (torch.randn(rows, 3, generator=generator, dtype=torch.float64) for rows in (1, 3))
    a, b = torch.cartesian_prod(torch.arange(3), torch.arange(3)).T

    def log_probs(of_first, of_second):
        return of_first.log_softmax(1)[0, a], of_second.log_softmax(1)[a, b]

    policy, reference = log_probs(first, second), log_probs(ref_first, ref_second)
    of_response, ref_of_response = sum(policy), sum(reference)
    exact = (of_response.exp() * (of_response - ref_of_response)).sum()
    expected = torch.autograd.grad(exact, (first, second), retain_graph=True)

    logits = torch.stack([first[0].expand(9, 3), second[a]], dim=1).flatten(0, 1)
    ref_logits = torch.stack([ref_first[0].expand(9, 3), ref_second[a]], dim=1).flatten(0, 1)
    kl = losses.token_kl(logits, ref_logits, torch.ones(9, 2, dtype=torch.bool)).sum(-1)
    share = of_response.detach().exp()
    assert (share * kl).sum().item() == pytest.approx(exact.item())
    loss = (share * (kl + kl.detach() * of_response)).sum()  # the loss term, and the return's score-function term
    for found, wanted in zip(torch.autograd.grad(loss, (first, second)), expected, strict=True):
        torch.testing.assert_close(found, wanted)


def test_gdpo_golden():
    # two groups of two, weights (3/4, 1/4) and (1/2, 1/2). Of (1, 3) and of (0, 4) the z-scores are -+1/sqrt(2) =: -+r, of (5, 5)
    # 0, of (2, 0) +-r; weighted sums -r, r, r/2, -r/2, whose mean is 0 and deviation r sqrt(2.5 / 3)
    rewards = torch.tensor([[1.0, 0], [3, 4], [5, 2], [5, 0]], dtype=torch.float64)
    weightings = torch.tensor([[0.75, 0.25], [0.75, 0.25], [0.5, 0.5], [0.5, 0.5]], dtype=torch.float64)
    scores = losses.group_z_scores(rewards, 2)
    r = 2**-0.5
    torch.testing.assert_close(scores[:, 1], torch.tensor([-r, r, r, -r], dtype=torch.float64), atol=1e-4, rtol=0)
    assert scores[2:, 0].tolist() == [0, 0]
    sums = losses.weighted_sum(scores, weightings)
    assert losses.whitened(sums, sums).tolist() == pytest.approx([-1.09545, 1.09545, 0.54772, -0.54772], abs=5e-4)
    half = losses.whitened(sums[:2], sums)  # of one process of two
    assert torch.equal(half, losses.whitened(sums, sums)[:2])


def test_gdpo_leaves_out_rewards_that_are_not_there():
    # as TRL: NaN counts neither in the mean 2 nor in the deviation sqrt(2) of its objective; a row without any reward gets 0
    nan = torch.nan
    rewards = torch.tensor([[1.0, 0], [3, nan], [nan, nan], [nan, 4]], dtype=torch.float64)
    scores = losses.group_z_scores(rewards, 4)
    r = 1 / (2**0.5 + 1e-4)
    assert scores[:2, 0].tolist() == pytest.approx([-r, r]) and scores[2:, 0].isnan().all()
    sums = losses.weighted_sum(scores, torch.tensor([0.5, 0.5]))
    assert sums[[0, 1]].tolist() == pytest.approx([-r / 2 - 2 / (8**0.5 + 1e-4) / 2, r / 2]) and sums[2].isnan()
    advantages = losses.whitened(sums, sums)
    assert advantages[2] == 0 and advantages[[0, 1, 3]].sum().item() == pytest.approx(0, abs=1e-12)


def test_soft_minimum_golden():
    # scores 0 and ln 3: k = 1 -log((1 + 1/3) / 2), k = 2 -log((1 + 1/9) / 2) / 2; at (1, 0) the first alone; w.Z in the limit
    scores, even = torch.tensor([[1.0, 3.0]]).log(), torch.tensor([[0.5, 0.5]])
    assert losses.soft_minimum(scores, even, 1.0).item() == pytest.approx(0.405465, abs=1e-5)
    assert losses.soft_minimum(scores, even, 2.0).item() == pytest.approx(0.293893, abs=1e-5)
    assert losses.soft_minimum(scores, torch.tensor([[1.0, 0.0]]), 2.0).item() == 0
    assert losses.soft_minimum(scores, torch.tensor([[0.25, 0.75]]), 1e-3).item() == pytest.approx(0.82396, abs=1e-3)


def test_cvar_golden():
    # the worst half of 4, 1, 3, 2 is 1 and 2: b = 2, so 1 gives 2 - 1 / 0.5 = 0 and the others 2; the mean is 1.5
    utilities = losses.cvar_utilities(torch.tensor([4.0, 1, 3, 2, 0, 0, 0, 9]), 4, 0.5)
    assert utilities.tolist() == [2, 0, 2, 2, 0, 0, 0, 0]
    # an importance weight of 3 counts as three responses: of 1, 1, 1, 5 the worst half is 1
    weighted = losses.cvar_utilities(torch.tensor([1.0, 5]), 2, 0.5, torch.tensor([1.5, 0.5]))
    assert weighted.tolist() == [1, 1]


@given(st.lists(st.floats(-10, 10), min_size=1, max_size=9), st.floats(0.05, 1))
def test_cvar_is_the_mean_of_the_worst_share(returns, tau):
    # by sorting: tau S returns from below, the last of them in part
    rest, total = tau * len(returns), 0.0
    for value in sorted(returns):
        total, rest = total + min(max(rest, 0), 1) * value, rest - 1
    utilities = losses.cvar_utilities(torch.tensor(returns, dtype=torch.float64), len(returns), tau)
    assert utilities.mean().item() == pytest.approx(total / (tau * len(returns)), abs=1e-6)
    if tau == 1:
        assert utilities.tolist() == pytest.approx(returns)


def test_pair_loss_golden_and_gradient():
    # the first group's best is its second response, its worst the first: margin 0.3, beta 2, -log sigmoid(0.6) = 0.437488; the
    # second is a tie of weight 0; d / d dlr = -+ beta sigmoid(-0.6) / G = -+ 0.354344
    ratios = torch.tensor([0.2, 0.5, 9, 1, 2, 3], requires_grad=True)
    loss = losses.pair_loss(ratios, torch.tensor([1.0, 3, 2, 5, 5, 5]), 3, 2.0)
    assert loss.item() == pytest.approx(0.437488 / 2, abs=1e-6)
    loss.backward()
    assert ratios.grad.tolist() == pytest.approx([0.354344, -0.354344, 0, 0, 0, 0], abs=1e-6)


def test_preferences_by_the_odds_of_the_reward_have_the_optimum_of_the_objective_at_the_beta_that_is_named():
    # two answers, y+ preferred with probability sigmoid(R+ - R-): at pi* ~ pi_ref exp((1 - alpha) / alpha R) no gradient is left
    alpha, rewards = 0.3, torch.tensor([1.4, 0.2], dtype=torch.float64)
    ratios = ((1 - alpha) / alpha * rewards).requires_grad_()  # dlr, up to a constant
    beta, likely = alpha / (1 - alpha), (rewards[0] - rewards[1]).sigmoid()
    first, second = (losses.pair_loss(ratios, order, 2, beta) for order in (rewards, -rewards))
    (gradient,) = torch.autograd.grad(likely * first + (1 - likely) * second, ratios)
    assert gradient.tolist() == pytest.approx([0, 0], abs=1e-12)


def test_other_weighting_loss_golden():
    # log-ratios 1 and -1, elsewhere 0 and -1, beta 1/2: (log(1 + e^-0.5) + log 2) / 2 = (0.474077 + 0.693147) / 2
    here, elsewhere = torch.tensor([1.0, -1.0], requires_grad=True), torch.tensor([0.0, -1.0], requires_grad=True)
    loss = losses.other_weighting_loss(here, elsewhere, 0.5)
    assert loss.item() == pytest.approx(0.583612, abs=1e-6)
    loss.backward()
    assert torch.equal(here.grad, -elsewhere.grad) and (here.grad < 0).all()
