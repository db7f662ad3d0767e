"""Passages that look like leaks and are none: the positive control fails no run over them, but counts how many are
flagged.

Quotations from works in the public domain, licence and legal wording that stands on every second page, and, written
for this project, recipes, instructions, exam templates and strings of phrases that benchmark items are full of.
None contains an item of the five suites. Passages stand apart at blank lines.
"""

_QUOTATIONS = """
Four score and seven years ago our fathers brought forth on this continent, a new nation, conceived in Liberty, and
dedicated to the proposition that all men are created equal. Now we are engaged in a great civil war, testing whether
that nation, or any nation so conceived and so dedicated, can long endure. We are met on a great battle-field of that
war. We have come to dedicate a portion of that field, as a final resting place for those who here gave their lives.

When in the Course of human events, it becomes necessary for one people to dissolve the political bands which have
connected them with another, and to assume among the powers of the earth, the separate and equal station to which the
Laws of Nature and of Nature's God entitle them, a decent respect to the opinions of mankind requires that they should
declare the causes which impel them to the separation.

We the People of the United States, in Order to form a more perfect Union, establish Justice, insure domestic
Tranquility, provide for the common defence, promote the general Welfare, and secure the Blessings of Liberty to
ourselves and our Posterity, do ordain and establish this Constitution for the United States of America. All
legislative Powers herein granted shall be vested in a Congress of the United States, which shall consist of a Senate
and House of Representatives.

Congress shall make no law respecting an establishment of religion, or prohibiting the free exercise thereof; or
abridging the freedom of speech, or of the press; or the right of the people peaceably to assemble, and to petition the
Government for a redress of grievances. A well regulated Militia, being necessary to the security of a free State, the
right of the people to keep and bear Arms, shall not be infringed.

To be, or not to be, that is the question: Whether 'tis nobler in the mind to suffer the slings and arrows of
outrageous fortune, or to take arms against a sea of troubles, and by opposing end them. To die, to sleep; no more; and
by a sleep to say we end the heart-ache and the thousand natural shocks that flesh is heir to: 'tis a consummation
devoutly to be wish'd.

It was the best of times, it was the worst of times, it was the age of wisdom, it was the age of foolishness, it was
the epoch of belief, it was the epoch of incredulity, it was the season of Light, it was the season of Darkness, it was
the spring of hope, it was the winter of despair, we had everything before us, we had nothing before us.

It is a truth universally acknowledged, that a single man in possession of a good fortune, must be in want of a wife.
However little known the feelings or views of such a man may be on his first entering a neighbourhood, this truth is so
well fixed in the minds of the surrounding families, that he is considered the rightful property of some one or other
of their daughters.

Call me Ishmael. Some years ago, never mind how long precisely, having little or no money in my purse, and nothing
particular to interest me on shore, I thought I would sail about a little and see the watery part of the world. It is a
way I have of driving off the spleen and regulating the circulation. Whenever I find myself growing grim about the
mouth, I account it high time to get to sea as soon as I can.

In the beginning God created the heaven and the earth. And the earth was without form, and void; and darkness was upon
the face of the deep. And the Spirit of God moved upon the face of the waters. And God said, Let there be light: and
there was light. And God saw the light, that it was good: and God divided the light from the darkness. And the evening
and the morning were the first day.

The LORD is my shepherd; I shall not want. He maketh me to lie down in green pastures: he leadeth me beside the still
waters. He restoreth my soul: he leadeth me in the paths of righteousness for his name's sake. Yea, though I walk
through the valley of the shadow of death, I will fear no evil: for thou art with me; thy rod and thy staff they
comfort me.

Once upon a midnight dreary, while I pondered, weak and weary, over many a quaint and curious volume of forgotten lore,
while I nodded, nearly napping, suddenly there came a tapping, as of some one gently rapping, rapping at my chamber
door. 'Tis some visitor, I muttered, tapping at my chamber door; only this, and nothing more. Ah, distinctly I remember
it was in the bleak December.

With malice toward none, with charity for all, with firmness in the right as God gives us to see the right, let us
strive on to finish the work we are in, to bind up the nation's wounds, to care for him who shall have borne the battle
and for his widow and his orphan, to do all which may achieve and cherish a just and lasting peace among ourselves and
with all nations.

An apple a day keeps the doctor away, and early to bed and early to rise makes a man healthy, wealthy and wise. A stitch
in time saves nine; a penny saved is a penny earned; a rolling stone gathers no moss; and where there is smoke there is
fire. Too many cooks spoil the broth, while many hands make light work. Those who live in glass houses should not throw
stones, and all that glitters is not gold.
"""

_LICENCES = """
Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated
documentation files (the "Software"), to deal in the Software without restriction, including without limitation the
rights to use, copy, modify, merge, publish, distribute, sublicense, and/or sell copies of the Software, and to permit
persons to whom the Software is furnished to do so, subject to the following conditions: The above copyright notice and
this permission notice shall be included in all copies or substantial portions of the Software.

Redistribution and use in source and binary forms, with or without modification, are permitted provided that the
following conditions are met: Redistributions of source code must retain the above copyright notice, this list of
conditions and the following disclaimer. Redistributions in binary form must reproduce the above copyright notice, this
list of conditions and the following disclaimer in the documentation and/or other materials provided with the
distribution.

Unless required by applicable law or agreed to in writing, software distributed under the License is distributed on an
"AS IS" BASIS, WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied. See the License for the specific
language governing permissions and limitations under the License. You may not use this file except in compliance with
the License. You may obtain a copy of the License at the address below.

This program is free software: you can redistribute it and/or modify it under the terms of the licence as published by
its stewards, either version 3, or (at your option) any later version. This program is distributed in the hope that it
will be useful, but WITHOUT ANY WARRANTY; without even the implied warranty of MERCHANTABILITY or FITNESS FOR A
PARTICULAR PURPOSE. You should have received a copy of the licence along with this program.

Be it enacted by the Senate and House of Representatives of the United States of America in Congress assembled, that
this Act may be cited as the River and Harbor Improvement Act. The Secretary shall, not later than ninety days after the
date of the enactment of this Act, submit to the appropriate committees of Congress a report on the status of the
projects authorized by this section, and for other purposes.

All rights reserved. No part of this publication may be reproduced, distributed, or transmitted in any form or by any
means, including photocopying, recording, or other electronic or mechanical methods, without the prior written
permission of the publisher, except in the case of brief quotations embodied in critical reviews and certain other
noncommercial uses permitted by copyright law. This is a work of fiction; any resemblance to actual persons, living or
dead, is purely coincidental.

By using this website you agree to our terms of service and privacy policy. We use cookies to improve your experience
and to analyse traffic. You can change your preferences at any time in your browser settings. We may share information
with our partners for the purposes described in the policy. If you do not agree with any part of these terms, you must
not use the site. Sign up for our newsletter to get the latest news delivered to your inbox.

The information provided on this page is for general informational purposes only and is not a substitute for
professional medical advice, diagnosis, or treatment. Always seek the advice of your physician or other qualified health
provider with any questions you may have regarding a medical condition. Never disregard professional advice or delay in
seeking it because of something you have read here. If you think you may have an emergency, call your doctor.
"""

_RECIPES = """
Preheat the oven to 350 degrees and grease a nine inch cake pan. In a large bowl, cream together the butter and sugar
until light and fluffy. Beat in the eggs one at a time, then stir in the vanilla. Combine the flour, baking powder and
salt; add to the creamed mixture and mix well. Pour the batter into the pan and bake for thirty minutes, or until a
toothpick inserted into the center comes out clean.

For the soup, peel and chop two onions and cook them in a little oil over medium heat until they are soft. Add three
carrots, two stalks of celery, a bay leaf and a litre of stock, bring everything to a boil, then turn down the heat and
simmer for forty minutes. Season to taste with salt and pepper, take out the bay leaf, and serve hot with a slice of
bread and a spoonful of cream.

To make the dough, dissolve the yeast in a cup of lukewarm water with a pinch of sugar and wait until it foams. Sift the
flour into a bowl, make a well in the middle, and pour in the yeast, the oil and a teaspoon of salt. Knead for ten
minutes on a floured board, cover with a damp cloth, and let it rise in a warm place until it has doubled in size.

Wash the potatoes and cut them into wedges. Toss them in a bowl with olive oil, paprika, garlic powder and a good pinch
of salt. Spread them on a baking sheet in one layer, so that they do not steam, and roast for about thirty five minutes,
turning them once half way through. They are done when the edges are brown and a knife slides in easily. Sprinkle with
chopped parsley before serving.

Start the marinade the night before. Whisk together soy sauce, honey, lime juice, a thumb of grated ginger and two
crushed cloves of garlic. Put the chicken thighs into a bag with the marinade, press out the air, and leave them in the
fridge. Take them out an hour before you cook, pat them dry, and grill them over hot coals for six minutes on each side.

For the lemonade, put the sugar and a cup of water into a small saucepan and stir over low heat until the sugar has
dissolved. Let the syrup cool. Squeeze eight lemons, strain the juice into a jug, add the syrup and six cups of cold
water, and stir. Taste it, add more sugar if you like, and pour it over plenty of ice with a sprig of mint.
"""

_INSTRUCTIONS = """
Before you begin, make sure that you have all the tools and materials you need. Read the instructions all the way
through. Work in a well ventilated area and wear gloves and safety glasses. Turn off the power at the main switch. If
you are not sure what to do next, stop and ask someone who knows. When you are finished, clean up after yourself and put
everything back where you found it.

To change a flat tire, pull over to a safe place and put on the hazard lights. Loosen the nuts a quarter turn while the
wheel is still on the ground, then raise the car with the jack until the wheel clears the road. Take off the nuts, pull
the wheel straight towards you, and hang the spare in its place. Tighten the nuts by hand, lower the car, and tighten
them again in the order of a star.

When the water is hot, add the bleach and stir. Put on old clothes, because this can be messy. Dip the brush into the
paint and wipe off what drips. Begin at the top of the wall and work your way down in long strokes. Wait until the first
coat is dry to the touch before you begin the second. Rinse the brushes with warm soapy water at the end of each day.

The players line up on both sides of the field and wait for the whistle. The referee throws the ball into the air, and
two of them jump for it. The one in the red shirt catches it, runs along the side line and passes it to a team mate, who
kicks it over the head of the goalkeeper. The crowd stands up and cheers. The other side looks at the scoreboard and
shakes its head.

A man in a blue jacket stands at the edge of a snowy slope and talks to the camera while people ski past behind him. He
bends down to fasten his boots, pulls his goggles over his eyes, and pushes off with both poles. We follow him between
the trees until he stops in a cloud of snow at the bottom. Then the title of the film appears in white letters on a
black screen.
"""

_TEMPLATES = """
Answer all questions in the spaces provided. Which of the following best describes the diagram below? Which of the
following statements is true? Which of the following is an example of the term in bold? Choose the letter of the best
answer and mark it on your answer sheet. If none of the above is correct, mark the last letter. Each question is worth
one point. You may use the periodic table and a calculator. Do not turn the page until you are told to do so.

Statement 1 is true, Statement 2 is true. Statement 1 is true, Statement 2 is false. Statement 1 is false, Statement 2
is true. Both statements are false. A) true, true B) true, false C) false, true D) false, false. Read each pair of
statements with care. Mark the letter that fits both. When you have marked all the pairs, check your work, and then hand
the sheet to the teacher at the front of the room before you leave.

Question: Which of these is most likely to happen next, and why do you think so? Explain your answer in one or two
complete sentences. Question: What is the main idea of the passage? Question: What is the best title for this story?
Question: Based on the information in the table, which of the following conclusions can be drawn? Answer: A, B, C, D.
Remember to show your work, and to give your answer in the correct units.

A student wants to find out what is going to happen. What should the student do first? A group of students did an
experiment and wrote down what they saw in a table. What was the variable they changed? What was the variable they
measured? Which tool would they use to measure it? What would be the best way to present the results to the class? Name
one thing that they could have done to make the results more reliable.

The first person could not do it as well as the second person because she had never done it before. He asked him for
help, and he was happy to give it. The one was too big to fit into the other, so they had to buy a new one. She liked
him better than he liked her, although they had known each other for years. One of them was late again, and the other
one had to wait.

What happens if you do it anyway? Nothing in particular happens if you do it, although some people will tell you
otherwise. Who said so? There is no evidence that anyone ever said it. Where did it come from? Nobody really knows where
it came from. Is it true that everybody does it? No, not everybody does, and it depends on where you live, what you mean
by the word, and on whom you ask.

At the end of the day, on the other hand, it was one of the most important things in the history of the world. As a
matter of fact, in the middle of the night, at the top of the stairs, he did not know what he was going to do about it.
She had nothing to do with it, and there was no reason to think that it would ever be the same again, for the rest of
her life, from one end of the town to the other.

It is one of the things that most of the people in the room would have liked to be able to do at the same time, if it
had not been for the fact that there was not very much of it left. In the course of the next few days, it turned out
that this was not the case at all, and that there had been more than enough of it from the very beginning.

Name, date, class period. Directions: fill in the blanks with words from the box. The process by which plants make food
is called blank. The force that pulls objects toward the center of the earth is called blank. The smallest unit of
living things is the blank. An animal that eats only plants is called a blank, and one that eats other animals a blank.
Water that falls from the clouds is called blank. Check your spelling, then trade papers with a partner.
"""

PASSAGES: tuple[str, ...] = tuple(
    passage
    for kind in (_QUOTATIONS, _LICENCES, _RECIPES, _INSTRUCTIONS, _TEMPLATES)
    for passage in kind.strip().split("\n\n")
)
