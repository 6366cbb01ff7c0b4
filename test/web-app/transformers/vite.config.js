import { defineConfig } from 'vite';

// onnxruntime-web uses several threads only where the page is isolated from other origins.
const headers = { 'Cross-Origin-Opener-Policy': 'same-origin', 'Cross-Origin-Embedder-Policy': 'require-corp' };

export default defineConfig({
  base: './',
  build: { target: 'es2022' },
  // transformers.js asks for this part of onnxruntime-web, and gets ort-flash/web.
  resolve: { alias: { 'onnxruntime-web/webgpu': 'ort-flash/web' } },
  optimizeDeps: {
    exclude: ['@huggingface/transformers', 'ort-flash', 'onnxruntime-web'],
    include: ['ort-flash > protobufjs/minimal.js'],
  },
  server: { headers },
  preview: { headers },
});
