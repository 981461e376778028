"""Benchmarks of judges: what to ask, and what the answers are worth. Only `answering` and `endpoint` ask one.

```python
benchmark = BENCHMARKS["vl-rewardbench"]
rows = benchmark.load(Path("vl_rewardbench.parquet"))
for question in benchmark.questions(rows, "strict"):
    ...  # a judge writes `text` for question.prompt and question.image
    predictions.append(record(question, "my-judge", text, benchmark.parse(question, text)))
estimate(benchmark.score(rows, predictions, "strict"))["overall"]  # {"value": …, "low": …, "high": …}
```
"""

from carevl.benchmarks.suite import Benchmark
from carevl.benchmarks.suites import (
    mllm_judge,
    mm_rlhf_rewardbench,
    multimodal_rewardbench,
    rewardbench2,
    vl_rewardbench,
)

BENCHMARKS: dict[str, Benchmark] = {
    module.NAME: module
    for module in (vl_rewardbench, mllm_judge, multimodal_rewardbench, mm_rlhf_rewardbench, rewardbench2)
}
"""Benchmark id to its module."""
