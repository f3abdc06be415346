"""To and from Hugging Face directories: names, settings, tokenizer, and the check on reload. Nothing needs custom code there.

Learned positions are `roberta-prelayernorm` (Pre-LN), whose position table starts at pad_id + 1, or `bert` (Post-LN); rotary positions are
`modernbert`. `names` holds a row per family, and each kind of config.json has a module that translates it.
"""
