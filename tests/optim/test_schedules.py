"""What every learning-rate schedule must be, whatever its lengths."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optim.schedules import learning_rate_at

SCHEDULES = ["constant", "linear", "cosine"]
any_schedule = st.sampled_from(SCHEDULES)
bases = st.floats(1e-8, 100.0)
quick = settings(deadline=None, max_examples=50)


@st.composite
def lengths(draw, shortest_decay=1):
    """Steps of warm-up and of the whole run."""
    warmup_steps = draw(st.integers(0, 200))
    return warmup_steps, warmup_steps + draw(st.integers(shortest_decay, 300))


def rates(base, schedule, warmup_steps, num_steps, more=0):
    keys = {"base": base, "schedule": schedule, "warmup_steps": warmup_steps, "num_steps": num_steps}
    return [learning_rate_at(step, **keys) for step in range(num_steps + more)]


@quick
@given(any_schedule, bases, lengths())
def test_no_step_of_a_run_has_rate_0_or_one_above_the_base(schedule, base, steps):
    assert all(0 < rate <= base * (1 + 1e-12) for rate in rates(base, schedule, *steps))


@quick
@given(any_schedule, bases, st.integers(0, 50), st.integers(0, 50))
def test_no_rate_is_negative_or_above_the_base_even_after_the_end(schedule, base, warmup_steps, num_steps):
    """Nor where the warm-up is longer than the run."""
    assert all(0 <= rate <= base * (1 + 1e-12) for rate in rates(base, schedule, warmup_steps, num_steps, more=100))


@quick
@given(any_schedule, bases, lengths())
def test_the_peak_is_the_base_at_the_end_of_the_warm_up(schedule, base, steps):
    warmup_steps = steps[0]
    found = rates(base, schedule, *steps)
    assert found[max(0, warmup_steps - 1)] == pytest.approx(base, rel=1e-12)
    assert max(found) == pytest.approx(base, rel=1e-12)


@quick
@given(any_schedule, bases, lengths())
def test_the_warm_up_rises_by_equal_steps(schedule, base, steps):
    warmup_steps = steps[0]
    rise = rates(base, schedule, *steps)[:warmup_steps]
    assert rise == pytest.approx([base * (step + 1) / warmup_steps for step in range(warmup_steps)], rel=1e-12)
    assert all(later > earlier for earlier, later in zip(rise, rise[1:]))


@quick
@given(st.sampled_from(["linear", "cosine"]), bases, lengths())
def test_the_rate_only_falls_after_the_warm_up(schedule, base, steps):
    fall = rates(base, schedule, *steps, more=5)[steps[0] :]
    assert all(later <= earlier for earlier, later in zip(fall, fall[1:]))
    assert fall[-5:] == pytest.approx([0.0] * 5, abs=1e-12 * base)  # 0 is where the next step would be


@quick
@given(bases, lengths())
def test_a_constant_rate_stays(base, steps):
    assert set(rates(base, "constant", *steps, more=5)[steps[0] :]) == {base}


@quick
@given(st.sampled_from(["linear", "cosine"]), bases, lengths(shortest_decay=2))
def test_the_fall_is_point_symmetric_about_its_middle(schedule, base, steps):
    fall = rates(base, schedule, *steps, more=1)[steps[0] :]
    assert [a + b for a, b in zip(fall, fall[::-1])] == pytest.approx([base] * len(fall), rel=1e-9)


@quick
@given(bases, lengths())
def test_a_cosine_is_half_a_wave(base, steps):
    fall = rates(base, "cosine", *steps)[steps[0] :]
    expected = [base * math.cos(math.pi * step / (2 * len(fall))) ** 2 for step in range(len(fall))]
    assert fall == pytest.approx(expected, rel=1e-9, abs=1e-12 * base)
