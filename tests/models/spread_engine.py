"""A script, since one process holds one engine: texts of the captioner, spread over two processes, as JSON."""

import itertools
import json
from typing import Any

from carevl.miniworld.items import draw_items
from carevl.miniworld.models import CAPTION_PROMPT
from carevl.models.engines import generator
from carevl.models.engines.base import GenerationRequest
from carevl.settings.loader import load_settings


def main() -> None:
    requests = [
        GenerationRequest((image,), CAPTION_PROMPT) for image, _ in itertools.islice(draw_items("test", "engines"), 8)
    ]
    engine: Any = generator(load_settings("mini", ["captioner.engine=vllm", "captioner.tensor_parallel=2"]).captioner)
    texts = [generation.text for generation in engine.generate(requests, max_tokens=40)]
    parallel = engine.engine.llm_engine.vllm_config.parallel_config.tensor_parallel_size
    print(json.dumps({"processes": parallel, "texts": texts}), flush=True)


if __name__ == "__main__":
    main()
