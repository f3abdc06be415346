"""To and from Hugging Face directories: names, settings, tokenizer, and the check on reload.

Pre-LN is `roberta-prelayernorm`, whose position table starts at pad_id + 1; Post-LN is `bert`. Both without custom code.
"""
