"""A logits processor that pushes the highest ids there are, for requests that ask for it."""

import torch
from vllm import SamplingParams
from vllm.v1.sample.logits_processor import AdapterLogitsProcessor, RequestLogitsProcessor

HIGHEST = 5


def push(output_ids: list[int], logits: torch.Tensor) -> torch.Tensor:
    del output_ids
    logits[-HIGHEST:] += 1000
    return logits


class PushHighestIds(AdapterLogitsProcessor):
    """Active where a request's `extra_args` have `push`."""

    def is_argmax_invariant(self) -> bool:
        return False

    def new_req_logits_processor(self, params: SamplingParams) -> RequestLogitsProcessor | None:
        return push if (params.extra_args or {}).get("push") else None
