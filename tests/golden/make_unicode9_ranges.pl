#!/usr/bin/perl
# Prints the ranges of model/unicode9.c: code points from U+0300 on that Unicode 9.0 assigns and that are marks,
# have a combining class or a decomposition, or are part of one. Between two of them a range may run over characters of which
# nothing is asked; never over one that a later version added with such a property, nor over one that no
# version known to this Perl assigns. Unicode's stability policy keeps the rest of each property as it was.
#
#     perl tests/golden/make_unicode9_ranges.pl
#
# Made with Perl 5.36 (Unicode 14.0).
use strict;
use warnings;
no warnings 'utf8';
use Unicode::Normalize qw(getCanon getCombinClass getCompat);

my ($first, $last, @ranges, %part);
$part{$_} = 1 for 0x1100 .. 0x1112, 0x1161 .. 0x1175, 0x11A8 .. 0x11C2;
for my $cp (0xC0 .. 0xABFF, 0xF900 .. 0x2FFFF) {
    my $whole = getCanon($cp);
    $part{ord $_} = 1 for defined $whole ? split //, $whole : ();
}
for my $cp (0x300 .. 0xD7FF, 0xE000 .. 0x2FFFF, 0xE0000 .. 0xE0FFF) {
    my $char = chr $cp;
    my $assigned = $char !~ /\p{Cn}/;
    my $in_nine = $char =~ /\p{Present_In: 9.0}/;
    # U+1CF2 and U+1CF3 were marks until Unicode 12.
    my $asked = $assigned && ($char =~ /\p{M}/ || getCombinClass($cp) || defined getCompat($cp)
        || $part{$cp} || $cp == 0x1CF2 || $cp == 0x1CF3);
    if ($asked && $in_nine) {
        $first //= $cp;
        $last = $cp;
    } elsif (($asked || !$assigned) && defined $first) {
        push @ranges, [$first, $last];
        undef $first;
    }
}
push @ranges, [$first, $last] if defined $first;
my $line = "   ";
for (map { sprintf " {0x%X, 0x%X},", @$_ } @ranges) {
    if (length($line . $_) > 100) {
        print "$line\n";
        $line = "   ";
    }
    $line .= $_;
}
print "$line\n";
