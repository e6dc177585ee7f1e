"""What figures can say: intervals, paired comparisons, and the nested seeds that they are over."""
