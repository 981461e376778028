"""A script, since closing an engine ends what its process shares: texts before and after a second engine was loaded."""

import gc
import itertools
import json

import psutil

from carevl.miniworld.items import draw_items
from carevl.miniworld.models import CAPTION_PROMPT
from carevl.models.engines import close_engines, generator
from carevl.models.engines.base import GenerationRequest
from carevl.settings.models import Judge, Pool

CAPTIONER = Judge(path="miniworld:captioner", max_model_len=512, pool=Pool(batch_size=8))


def main() -> None:
    requests = [
        GenerationRequest((image,), CAPTION_PROMPT) for image, _ in itertools.islice(draw_items("test", "engines"), 8)
    ]
    texts, held = [], []
    for _ in range(3):
        engine = generator(CAPTIONER)
        texts.append([generation.text for generation in engine.generate(requests, max_tokens=40)])
        close_engines()
        del engine
        gc.collect()
        held.append(psutil.Process().memory_info().rss)
    print(json.dumps({"same": texts[0] == texts[1] == texts[2], "held": held}), flush=True)


if __name__ == "__main__":
    main()
