"""Rows of many users in one batch: text token by token, pictures step by step."""
