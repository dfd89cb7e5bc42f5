"""The attacks that CAFE is set beside: gradient matching on one batch, its priors, and over rounds of known members."""
