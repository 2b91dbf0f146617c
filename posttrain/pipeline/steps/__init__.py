"""What each stage does: read its inputs, call one function below, write the artefacts."""
