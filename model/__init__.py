"""Kimi-Audio for vLLM, computing what the released model computes.

An out-of-tree plug-in: once this package is installed, vLLM calls :func:`register` in each of its processes (entry
point group ``vllm.general_plugins``), and ``LLM("moonshotai/Kimi-Audio-7B-Instruct")`` runs this implementation,
without remote code.
"""

ARCHITECTURE = "MoonshotKimiaForCausalLM"


def register() -> None:
    """Register the architecture, its configuration and its tokenizer with vLLM; safe to call again."""
    import logging

    from vllm import ModelRegistry
    from vllm.tokenizers.registry import TokenizerRegistry
    from vllm.transformers_utils.config import _CONFIG_REGISTRY

    from model.configuration import KimiAudioConfig

    _CONFIG_REGISTRY[KimiAudioConfig.model_type] = KimiAudioConfig
    # vLLM gives this architecture the tokenizer mode "kimi_audio" by itself; the class behind it is replaced here.
    # Both registries warn when an entry is replaced: here that is the purpose.
    TokenizerRegistry.tokenizers["kimi_audio"] = ("model.tokenizer", "KimiAudioTokenizer")
    registry_logger = logging.getLogger("vllm.model_executor.models.registry")
    level = registry_logger.level
    registry_logger.setLevel(logging.ERROR)
    try:
        ModelRegistry.register_model(ARCHITECTURE, "model.kimi_audio:KimiAudioForConditionalGeneration")
    finally:
        registry_logger.setLevel(level)
