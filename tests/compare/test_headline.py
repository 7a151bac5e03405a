"""The headline of a comparison: the share of the gap, else a difference with its doubt."""

from __future__ import annotations

from distill.compare.stats import Difference, Gap, Interval, paired_difference
from distill.compare.summary import headline


def entry(title: str, *, gap: Gap | None = None, target: str = "teacher", difference=None, **by: float):
    return {
        "title": title,
        "by": {model: Interval(mean, mean, mean, 32) for model, mean in by.items()},
        "gap_closed": gap,
        "gap_target": target if gap else None,
        "student_minus_base": difference or Difference(0.13, 0.09, 0.17, 32, True),
    }


OVERLAP = entry("ROUGE-L to the teacher", base=0.11, student=0.24, teacher_again=0.35)
STYLE = {
    "stopped": entry("Stops by itself", student=0.84, teacher=0.91),
    "repetition": entry("Repetition", student=0.06, teacher=0.04),
}


def test_the_headline_leads_with_the_share_of_the_gap():
    nll = entry("NLL of the teacher's answers", gap=Gap(0.58, 0.51, 0.64, 32), base=3.9, student=2.2, teacher=0.9)
    assert headline(32, {"nll_per_byte": nll, "rouge_l": OVERLAP, **STYLE}, "nll_per_byte") == (
        "The student closes 58% (95% CI 51% to 64%) of the gap in NLL of the teacher's answers between the untrained "
        "base and the teacher on 32 held-out prompts; ROUGE-L to the teacher 0.24 against the base's 0.11 (difference "
        "+0.13, 95% CI 0.09 to 0.17; the teacher's own second answer: 0.35); it stops by itself in 84% of answers "
        "(teacher 91%), repetition 0.06 (teacher 0.04)."
    )


def test_without_any_share_the_headline_leads_with_a_difference_and_its_doubt():
    doubtful = Difference(-0.1, -0.3, 0.1, 31, False)
    nll = entry("NLL of the teacher's answers", base=3.9, student=3.8, difference=doubtful)
    assert headline(32, {"nll_per_byte": nll}, "nll_per_byte") == (
        "On 31 of 32 held-out prompts: NLL of the teacher's answers 3.80 against the base's 3.90 "
        "(difference −0.10, 95% CI −0.30 to 0.10, so it may be none)."
    )


def test_a_difference_on_too_few_prompts_is_not_said_to_be_none_beside_an_interval_without_zero():
    few = paired_difference([0.30, 0.31, 0.32, 0.33], [0.35, 0.36, 0.37, 0.375])
    overlap = entry("ROUGE-L", base=0.36, student=0.32, difference=few)
    assert headline(4, {"rouge_l": overlap}, "rouge_l").endswith(
        "(difference −0.05, 95% CI −0.05 to −0.04, too few prompts to tell: at least 6 are needed)."
    )


def test_a_headline_of_nothing_says_so():
    assert headline(0, {}, None).startswith("There are no held-out prompts")
    assert headline(3, {}, None) == (
        "The student was compared on 3 held-out prompts, but no measure has a value for both it and its base."
    )
