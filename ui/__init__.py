"""What a person sees: the gradio pages. The only room that knows gradio."""
