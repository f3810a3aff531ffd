"""Which version people serve: gates, promotion, rollback, and the champion beside the challenger."""
