"""What runs an exported model: Paddle Inference, ONNX Runtime, OpenVINO."""
