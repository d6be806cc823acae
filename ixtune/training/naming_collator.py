"""Collate packs; an error in an image names the record that shows it."""

from __future__ import annotations

from ixtune.errors import IxtuneError
from ixtune.training.batch import Batch, PackCollator


class NamingCollator(PackCollator):
    """PackCollator whose errors name the record."""

    def make(self, indices: tuple[int, ...]) -> Batch:
        """Make the batch of some records.

        Raises:
            IxtuneError: An image is missing, damaged, or has changed since it was prepared.
        """
        try:
            return super().make(indices)
        except IxtuneError as error:
            shown = [
                index
                for index in indices
                if any(str(self.images.files.path(image)) == error.where for image in self._images(index))
            ]
            raise IxtuneError(
                f"an image of the training set cannot be used: {error.what}",
                where=error.where,
                hint="restore it, or set data.image_root to the folder of the images",
                notes=[*error.notes, *map(self.training_set.identity, shown[:1])],
            ) from error

    def _images(self, index: int) -> list[dict[str, object]]:
        stored: list[dict[str, object]] = self.training_set.record(index)["pictures"]
        return stored
