"""Where epochs run, under the contract `model.runner`."""
