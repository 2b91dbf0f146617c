"""Every curriculum on nano Llama 4 models that are trained for real, against uniform sampling."""
