"""Rules and comparisons, from data to findings; and carrying over what others wrote. No torch."""
