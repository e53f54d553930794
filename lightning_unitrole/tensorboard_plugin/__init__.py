"""The "Unit roles" tab of TensorBoard: what is logged for it, and the plugin that shows it."""
