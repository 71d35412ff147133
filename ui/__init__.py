"""What a person sees: the gradio pages. The only room that knows gradio."""

from studio.ui.privacy import keep_quiet

keep_quiet()
