"""The prompt of MLLM-as-a-Judge, setting `No COT`.

Source: github.com/Dongping-Chen/MLLM-Judge, `scripts/prompt.py` and `construct_input` of `scripts/api_benchmark.py`
(whose lookup of the key `settings` is read as the `setting` that prompt.py defines).
"""

from __future__ import annotations

from collections.abc import Sequence

from carevl.judging.prompts import Task

_START = (
    "Please serve as an unbiased judge in assessing the quality of the responses from AI assistants regarding the "
    "user's instruction and a figure. "
)
_NO_COT = (
    "Please examine the provided image attentively. Begin by conducting a detailed analysis of the responses provided. "
    "Capture your comprehensive observations and insights in the 'Analysis' section. Following your analysis, move on "
    "to the judgement phase, where you will make informed decisions or conclusions based on the analysis conducted. "
    "Give your final judgements in the 'Judgement' section. Ensure that your final output in a JSON format with keys "
    "'Analysis' for the initial response analysis, and 'Judgement' for your final judgement only. Ensure that the "
    "content under each key does not contain any nested JSON structures."
)
_ADHERENCE = (
    "based on how effectively they adhere to the user's original instruction and how aptly they address the user's "
    "inquiry.\n"
)
_TASKS: dict[Task, str] = {
    "pointwise": (
        "\nYou will receive a single response from the AI assistant to user's instruction. Use scores to show the "
        "quality of the response. Here is the detailed scoring rubric for evaluating the quality of responses from AI "
        "assistants:\n"
        "Poor (1): The response significantly deviates from the user's instruction and fails to address the query "
        "effectively. It shows a lack of relevance, accuracy, and comprehensiveness. Creativity and granularity are "
        "absent or poorly executed.\n"
        "Fair (2): The response addresses the user's instruction partially, with evident shortcomings in relevance, "
        "accuracy, or comprehensiveness. It lacks depth in creativity and granularity, indicating a superficial "
        "understanding of the user's inquiry.\n"
        "Average (3): The response adequately addresses the user's instruction, showing a fair level of relevance, "
        "accuracy, and comprehensiveness. It reflects a basic level of creativity and granularity but may lack "
        "sophistication or depth in fully capturing the user's inquiry.\n"
        "Good (4): The response is well-aligned with the user's instruction, demonstrating a high degree of relevance, "
        "accuracy, and comprehensiveness. It shows creativity and a nuanced understanding of the topic, with detailed "
        "granularity that enhances the response quality.\n"
        "Excellent (5): The response perfectly adheres to the user's instruction, excelling in relevance, accuracy, "
        "comprehensiveness, creativity, and granularity. It provides an insightful, detailed, and thorough answer, "
        "indicating a deep and nuanced understanding of the user's inquiry.\n\n"
        'Use "[[1]]", "[[2]]", "[[3]]", "[[4]]", "[[5]]" to indicate your evaluate score in the key \'Judgement\'.\n'
    ),
    "pairwise": (
        "You will be presented with two responses from different assistants to the same user instruction.\n"
        f"Your task is to assess and compare these responses {_ADHERENCE}\n"
        'Indicate your decision in the key \'Judgement\', use "[[A]]" if assistant A prevails, "[[B]]" if assistant '
        'B does, and "[[C]]" for a tie.\n'
    ),
    "ranking": (
        "You will be presented with several responses from different assistants to the same user instruction.\n"
        f"Your task is to assess and  compare these responses {_ADHERENCE}"
        "After your assessment and comparison, you should RANK the responses from best to worst as the following "
        "template. If Assistant A is the best response, Assistant D is the worst response, you should output like "
        "[[A]], [[B]], [[C]], [[D]]. Indicate your final rank in the key 'Judgement'."
    ),
}
_NOTICE = (
    "Your assessment should identify whether the assistant effectively adheres to the user's instruction and addresses "
    "the user's inquiry.\n"
    "In your evaluation, weigh factors such as relevance, accuracy, comprehensiveness, creativity, and the granularity "
    "of the responses.\n"
    "Do not allow the length of the responses to influence your evaluation.\n"
    "Do not favor certain names or position of the assistants. Be as objective as possible."
)


def official_prompt(task: Task, instruction: str, responses: Sequence[str]) -> str:
    """Return the user turn for these responses in this order."""
    prompt = (
        f"{_START}\nEvaluation Steps:\n{_NO_COT}\nEvaluation Method:\n{_TASKS[task]}\nNotice:\n{_NOTICE}\n"
        f"Here is the input:\n\n[The Start of User Instruction]\n{instruction}\n[The End of User Instruction]"
    )
    if task == "pointwise":
        return f"{prompt}\n[The Start of Assistant’s Answer]\n{responses[0]}\n[The End of Assistant’s Answer]"
    answers = [
        f"[The Start of Assistant {letter}’s Answer]\n{response}\n[The End of Assistant {letter}’s Answer]"
        for letter, response in zip("ABCDEFGH", responses, strict=False)
    ]
    if task == "pairwise":
        return "\n".join([prompt, *answers])
    return prompt + "".join(f"{answer}\n" for answer in answers)
