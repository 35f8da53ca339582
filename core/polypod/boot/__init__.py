"""The pieces of the composition root; ``polypod.server`` joins them. Nobody else imports this room."""
