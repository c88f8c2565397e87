/**
 * Tells whether an index that moved from `oldIdx` to `newIdx` passed `event`: whether one of the
 * entries `oldIdx`, ..., `newIdx - 1` is the one that the other side wants to be told of.
 *
 * All three are free-running indices mod 2^16 (only their low 16 bits count); `newIdx` equal to
 * `oldIdx` means that nothing moved, so the answer is false. The distances are compared mod 2^16
 * because the indices wrap: a plain `>=` loses notifications behind 65535. Serves both directions
 * of both formats; a packed ring adds its size to an offset of another lap first
 * (virtio 1.4, 2.7.7.2, 2.7.10.1, 2.8.10; Appendix A `virtq_need_event`).
 */
export function vringNeedEvent(
  event: number,
  newIdx: number,
  oldIdx: number,
): boolean {
  return ((newIdx - event - 1) & 0xffff) < ((newIdx - oldIdx) & 0xffff);
}
