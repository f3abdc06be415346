from tests.finetuning.conftest import learn, learned, river_experiment, rivers, tiny, tiny_post, words_tokenizer

__all__ = ["learn", "learned", "river_experiment", "rivers", "tiny", "tiny_post", "words_tokenizer"]
