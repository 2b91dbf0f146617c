"""Every curriculum on simulated learners: what each costs, against uniform sampling."""
