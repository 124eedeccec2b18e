"""What the model is asked: the instruction, and the prompt ids around the audio.

At most one of the model's two token streams differs from the blank token at any position: a prompt is one list of ids.
"""

from typing import Final

from model.checkpoint import LANGUAGES
from model.tokenizer import KimiAudioTokenizer

# The released examples' own words. Without an instruction the Instruct model answers what was said.
INSTRUCTION: Final = "Please transcribe the following audio:"
CHINESE_INSTRUCTION: Final = "请将音频内容转换为文字。"
TRANSLATION: Final = "Please translate the following audio into {language}:"

TASKS: Final = ("transcribe", "translate")


def instruction(
    task: str = "transcribe",
    language: str | None = None,
    target_language: str | None = None,
    request_prompt: str | None = None,
) -> str:
    """The instruction for ``task``, or ``request_prompt`` in its place. Languages are ISO 639-1 codes.

    Raises ValueError for another task, or a target language that Kimi-Audio does not know. Translations go to English
    where no target is named.
    """
    if task not in TASKS:
        raise ValueError(f"unknown task {task!r}: the tasks are {' and '.join(TASKS)}")
    if request_prompt:
        return request_prompt
    if task == "translate":
        target = target_language or "en"
        if target not in LANGUAGES:
            raise ValueError(f"unknown target language {target!r}: the languages are {' '.join(LANGUAGES)}")
        return TRANSLATION.format(language=LANGUAGES[target])
    return CHINESE_INSTRUCTION if language == "zh" else INSTRUCTION


def transcription_prompt(tokenizer: KimiAudioTokenizer, instruction: str) -> list[int]:
    """Prompt ids, with one blank where the audio goes: vLLM's processor puts as many there as the recording takes."""
    return [
        tokenizer.special_id("im_kimia_user_msg_start"),
        *tokenizer.encode(instruction),
        tokenizer.special_id("im_media_begin"),
        blank_id(tokenizer),
        tokenizer.special_id("im_media_end"),
        tokenizer.special_id("im_kimia_speech_ct_id"),
        tokenizer.special_id("im_msg_end"),
        tokenizer.special_id("im_kimia_assistant_msg_start"),
    ]


def blank_id(tokenizer: KimiAudioTokenizer) -> int:
    """The id that stands in the stream that is silent, and in a prompt's audio positions."""
    return tokenizer.special_id("im_kimia_text_blank")


def text_end_id(tokenizer: KimiAudioTokenizer) -> int:
    """The id that ends the model's text."""
    return tokenizer.eos_token_id
