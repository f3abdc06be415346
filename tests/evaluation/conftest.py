from tests.finetuning.conftest import either, learn, learned, river_experiment, rivers, tiny, tiny_post, tiny_rotary, words_tokenizer

__all__ = ["either", "learn", "learned", "river_experiment", "rivers", "tiny", "tiny_post", "tiny_rotary", "words_tokenizer"]
