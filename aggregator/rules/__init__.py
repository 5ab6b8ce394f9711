"""The rule forms under a scenario: one function per form, written for one account or risk unit and vmapped."""
