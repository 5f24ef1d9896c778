"""sim: the production core, its schedule and the relayd model under a virtual clock."""
