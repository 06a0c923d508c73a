"""The learned encoder: CE-Net and Xception in tandem, and how they are trained. The only home of torch in `index`."""
