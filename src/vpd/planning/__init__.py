"""What runs cost before they run: parameters, multiply-adds, memory, hours, and the graph of jobs."""
