"""Names of what is written and read, without the modules that do it."""

FAMILIES = ("llama", "qwen2", "qwen3", "gemma2", "ouro")  # of Hugging Face, by their model_type
FORMATS = ("recursive", *FAMILIES)
OWN = "recursia"  # the model_type of a folder with our own modelling file
