# After the power cut.
sectors verify /dev/vda 9 --blocks 4096 --at-least "$AT_LEAST"
! sectors verify /dev/vda 9 --blocks 4096 --at-least $((AT_LEAST + 100000)) || fail "the judge is asleep"
