"""What is said of stored segments: the measurement report (TID 1500) and the key picture."""
