"""The wire format of OpenAI's API: requests, responses and streams of `distill serve`."""
