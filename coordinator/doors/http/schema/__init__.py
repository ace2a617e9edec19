"""What requests may say and what responses say, as pydantic models: the served OpenAPI schema."""
