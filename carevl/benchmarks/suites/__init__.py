"""The benchmarks, one file each.

```python
suite = SUITES["vl-rewardbench"]  # or SUITES["package.module:NAME"], a suite of one's own
rows = suite.load(Path("vl_rewardbench.parquet"))
for question in suite.questions(rows, "strict"):
    ...  # a judge writes `text` for question.turn: the prompt and question.images in it
    predictions.append(record(question, "my-judge", text, suite.parse(question, text)))
estimate(suite.score(rows, predictions, "strict"))["overall"]  # {"value": …, "low": …, "high": …}
```
"""

from carevl.benchmarks.suite import Suite
from carevl.benchmarks.suites import (
    mllm_judge,
    mm_rlhf_rewardbench,
    multimodal_rewardbench,
    multimodal_rewardbench2,
    pairwise,
    rewardbench2,
    vl_rewardbench,
    vlrmbench,
)
from carevl.settings.registry import Registry

SUITES: Registry[Suite] = Registry(
    "benchmark",
    Suite,
    (
        vl_rewardbench.SUITE,
        mllm_judge.SUITE,
        multimodal_rewardbench.SUITE,
        multimodal_rewardbench2.SUITE,
        mm_rlhf_rewardbench.SUITE,
        rewardbench2.SUITE,
        vlrmbench.SUITE,
        pairwise.SUITE,
    ),
)


def describe_suites() -> str:
    """Return the names of the benchmarks, each with its line, for help texts."""
    lines = ", ".join(f"{name} ({suite.summary})" for name, suite in SUITES.items())
    return f"{lines}, or one of your own as package.module:NAME"
